"""Times in words that people read."""


def duration(seconds: float) -> str:
    """Return a time for people: 45 s, 3:20 min, 2:05 h, 3 d 4 h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // (24 * 60)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes >= 2 else f"{round(seconds)} s"
