"""`pipeline port`: weights from elsewhere become a package, like one that was trained here.

The config says what the weights do not: how the model is built and how images are prepared. The
package can then be evaluated, used, registered and transferred; it tells where it comes from.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.jobs.disk import naming_disk
from pipeline.recipe import load_recipe
from pipeline.run.folder import DONE
from pipeline.spec import Misuse


def port(config: Path, overrides: Sequence[str], target: Path) -> int:
    """Write the package of what `init.from` of `config` names to the new folder `target`.

    Raises:
        Misuse: `target` exists, or the weights are not those of the config's model, or come
            without the label space of their head.
        Failure: a file of the weights is damaged, or the disk does not take the package.
    """
    recipe = load_recipe(config, overrides)
    if target.exists():
        raise Misuse(f"{target}: exists already; choose a new folder")

    from pipeline.export.package import write_package
    from pipeline.jobs.elsewhere import from_elsewhere, is_elsewhere
    from pipeline.jobs.start import adopt
    from pipeline.models.network import build_network

    if recipe.init is None or not is_elsewhere(recipe.init.origin):
        raise Misuse(
            f"field 'init.from' is '{recipe.init and recipe.init.origin}'; name weights from "
            "elsewhere: tf:PREFIX, timm:FILE or torchvision:FILE"
        )
    origin = from_elsewhere(recipe.init.origin, recipe.model)
    if origin.labels is None:
        raise Misuse(
            f"field 'init.from' is '{origin.name}': a package needs the classes of its head of "
            f"{origin.num_classes:,}; name their label space: init={origin.name}@imagenet_1k"
        )
    network = build_network(recipe.model, origin.num_classes, None)
    adopt(network, recipe, origin, origin.labels)
    facts = {"parent": origin.name, "recipe_digest": recipe.digest()}
    with naming_disk(target):
        write_package(
            target, recipe.model, network.state_dict(), origin.labels, recipe.preprocess, facts
        )
    print(
        f"{origin.name} is in {target}: a {recipe.model.name} of {origin.num_classes:,} classes "
        f"({origin.labels.name}) at {recipe.preprocess.eval_px} px"
    )
    return DONE
