"""What each step does: stages, rates, decay and draws, all functions of the step."""
