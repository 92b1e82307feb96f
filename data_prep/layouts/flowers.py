"""Oxford Flowers-102: 102flowers.tgz, imagelabels.mat and setid.mat.

Splits as published in setid.mat: `train` (trnid, 1,020), `minival` (valid, 1,020), `eval` (tstid,
6,149). Papers that say 2,040 train on train and minival together. The files number the 102 classes
only; their names follow the set's page. https://www.robots.ox.ac.uk/~vgg/data/flowers/102/
"""

from typing import TYPE_CHECKING

from data_prep.catalogue import Catalogue, Reader
from data_prep.layouts.official import MINIVAL, About, Listed, Official
from data_prep.population import EVAL, TRAIN, Placed

if TYPE_CHECKING:
    from data_prep.layouts import LayoutOptions

_ABOUT = About(
    "flowers102",
    "102flowers.tgz, imagelabels.mat and setid.mat",
    "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
)
_SPLITS = {"trnid": TRAIN, "valid": MINIVAL, "tstid": EVAL}
_NAMES = """
    pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold,
    tiger lily, moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot,
    king protea, spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily,
    balloon flower, giant white arum lily, fire lily, pincushion flower, fritillary, red ginger,
    grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke,
    sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly,
    ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy,
    daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup,
    oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium,
    bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia?, cautleya spicata,
    japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum,
    spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose,
    thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis,
    hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily,
    hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia,
    bromelia, blanket flower, trumpet creeper, blackberry lily"""
CLASSES = tuple(name.strip() for name in _NAMES.split(","))
"""Names of the labels 1 to 102, in order."""


def place_flowers102(catalogue: Catalogue, reader: Reader, options: "LayoutOptions") -> Placed:
    """Place Flowers-102 by its label and split files.

    Raises:
        Misuse: a file is missing, or images, labels and splits do not agree.
    """
    official = Official(catalogue, reader, options, _ABOUT)
    labels = official.mat("imagelabels.mat").integers("labels")
    sets = official.mat("setid.mat")
    images = official.images("jpg")
    classes = [official.label(CLASSES, number, "imagelabels.mat") for number in labels]
    listed: list[Listed] = []
    for name, split in _SPLITS.items():
        for number in sets.integers(name):
            if not 1 <= number <= len(labels):
                problem = f"{name} has image {number}, expected 1 to {len(labels)}"
                raise official.damaged("setid.mat", problem)
            listed.append(Listed(f"jpg/image_{number:05d}.jpg", split, classes[number - 1]))
    placed = official.placed(listed, images, CLASSES)
    if len(images) != len(labels):
        problem = f"it labels {len(labels):,} images, and the archive has {len(images):,}"
        raise official.damaged("imagelabels.mat", problem)
    return placed
