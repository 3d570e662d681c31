# What python-tuf, the reference implementation, thinks of a repository: prints `accepted` or the name of the exception.
#
# judge-tuf.py NOW/ FIRST-ROOT CACHE TARGET [BEFORE/]
#
# CACHE is a directory with a directory `targets` in it; BEFORE is a repository that was seen earlier.

import sys, os
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.api.exceptions import DownloadHTTPError

class Directory(FetcherInterface):
    def _fetch(self, url):
        path = url[len("file://"):]
        if not os.path.exists(path):
            raise DownloadHTTPError("not there", 404)
        with open(path, "rb") as file:
            yield file.read()

base, first, cache, target, seen = sys.argv[1:6]
def update(directory):
    updater = Updater(
        metadata_dir=cache, metadata_base_url="file://" + directory, fetcher=Directory(),
        target_base_url="file://" + directory, target_dir=cache + "/targets",
        config=UpdaterConfig(prefix_targets_with_hash=False, timestamp_max_length=16384),
        bootstrap=open(first, "rb").read(),
    )
    updater.refresh()
    info = updater.get_targetinfo(target)
    if info is None:
        raise KeyError(target)
    return open(updater.download_target(info), "rb").read()
if seen:
    update(seen)
try:
    update(base)
    print("accepted")
except Exception as error:
    print(type(error).__name__)
