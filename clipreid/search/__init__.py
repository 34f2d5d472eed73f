"""Finding individuals in one's own images: features of many images in one file, and exact search in it.

`embed` writes a gallery, `Gallery` opens and searches it, `find_images` reads what a user names on the command line,
`write_page` and `save_found` keep what was found.
"""

from clipreid.search.embedding import Embedded, embed
from clipreid.search.find import find_images
from clipreid.search.format import model_print
from clipreid.search.gallery import Gallery, Hit, mark_itself
from clipreid.search.page import write_page
from clipreid.search.save import save_found

__all__ = [
    "Embedded",
    "Gallery",
    "Hit",
    "embed",
    "find_images",
    "mark_itself",
    "model_print",
    "save_found",
    "write_page",
]
