"""``push`` and ``pull``: bundles to and from the Hugging Face hub.

The hub is HF_ENDPOINT's, https://huggingface.co where that is not set; the token is HF_TOKEN's, or that of
``hf auth login``. No message holds it.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pydantic
import requests
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cognate.artifact import MANIFEST, MAX_MANIFEST_BYTES, check_destination, publishing
from cognate.bundle import Bundle, BundleManifest
from cognate.errors import CognateError
from exporter.verification import verify

MAX_FILES = 1000
REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}")


class HubError(CognateError):
    """What the hub refused, does not have, or could not be asked."""


def push(bundle: str | Path | Bundle, repository: str, *, private: bool = False) -> str:
    """Upload a bundle, in one commit, into a model repository, which is made where there is none.

    Files that the repository holds besides are left there.

    Args:
        bundle: Its folder, which is checked against its manifest, or one opened before.
        repository: ``ORG/NAME``.
        private: Whether a repository that is made is seen by its members alone.

    Returns:
        The commit's address.

    Raises:
        ArtifactError: The bundle is missing or damaged.
        HubError: The hub cannot be reached, or refuses.
    """
    check_can_push(repository)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with _refusals_told(repository, "pushed to"):
        api = _api()
        api.create_repo(repository, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=opened.folder,
            allow_patterns=[_exactly(name) for name in (*opened.manifest.files, MANIFEST)],
            commit_message=f"Bundle {opened.manifest.fingerprint[:12]}",
        )
    return str(commit.commit_url)


def check_can_push(repository: str) -> None:
    """See, before there is a bundle, whether one could be pushed; the hub is not asked.

    Raises:
        HubError: The name is no repository's, or there is no token.
    """
    _check_repository(repository)
    if get_token() is None:
        raise HubError(
            "no token to push with; set HF_TOKEN to one that may write (of huggingface.co/settings)"
        )


def pull(
    repository: str, destination: str | Path, *, revision: str | None = None, force: bool = False
) -> Bundle:
    """Download a bundle, verify it, and only then publish it at its destination.

    Only the files that its manifest names are fetched, all of one commit.

    Args:
        repository: ``ORG/NAME``.
        destination: The bundle's folder.
        revision: A branch, a tag or a commit; None is the newest of the main branch.
        force: Whether a bundle that is there is replaced.

    Returns:
        The published bundle.

    Raises:
        HubError: The hub cannot be reached, there is no such repository, or it holds no bundle.
        ArtifactError: What came is no bundle, or damaged; or the destination exists or cannot be written.
    """
    _check_repository(repository)
    destination = Path(destination)
    check_destination(destination, BundleManifest.KIND, force=force)
    with publishing(destination, BundleManifest.KIND, force=force) as partial:
        with _refusals_told(repository, "pulled from"):
            _fetch(repository, revision, partial)
        # Where the hub's library keeps notes on what it fetched.
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        verify(partial)
    return Bundle.open(destination)


def _fetch(repository: str, revision: str | None, partial: Path) -> None:
    api = _api()
    info = api.model_info(repository, revision=revision, files_metadata=True)
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    if MANIFEST not in sizes:
        raise HubError(f"{repository} holds no bundle: it has no {MANIFEST}; cognate bundle push makes one")
    if (sizes[MANIFEST] or 0) > MAX_MANIFEST_BYTES:
        raise HubError(
            f"{repository} has a {MANIFEST} of more than {MAX_MANIFEST_BYTES} bytes; do not use it"
        )

    def fetch(name: str) -> Path:
        return Path(api.hf_hub_download(repository, name, revision=info.sha, local_dir=partial))

    try:
        manifest = BundleManifest.model_validate_json(fetch(MANIFEST).read_bytes())
    except pydantic.ValidationError as error:
        raise HubError(
            f"{repository} holds no bundle of this version: its {MANIFEST} is another's"
        ) from error
    if len(manifest.files) > MAX_FILES:
        raise HubError(f"{repository} names more than {MAX_FILES} files in its {MANIFEST}; do not use it")
    for name, digest in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or path.parts[:1] == (".cache",):
            raise HubError(
                f"{repository} names {name!r}, outside its folder, in its {MANIFEST}; do not use it"
            )
        if name not in sizes:
            raise HubError(f"{repository} lacks {name}, which its {MANIFEST} names; push the bundle again")
        if sizes[name] != digest.size:
            raise HubError(
                f"{repository} has {name} with {sizes[name]} bytes where its {MANIFEST} says {digest.size}; "
                "push the bundle again"
            )
    needed, free = sum(digest.size for digest in manifest.files.values()), shutil.disk_usage(partial).free
    if needed > free:
        raise HubError(f"{repository} takes {needed:,} bytes, and the disk has only {free:,} free")
    for name in manifest.files:
        fetch(name)


def _api() -> HfApi:
    return HfApi(library_name="cognate")


def _exactly(name: str) -> str:
    """A pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _check_repository(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise HubError(f"{repository} is no repository; write ORG/NAME, of letters, digits, -, _ and .")


@contextlib.contextmanager
def _refusals_told(repository: str, what: str) -> Iterator[None]:
    """Turn what the hub's library raises into one sentence of ours, which never holds a header."""
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{repository} is gated; ask its owner for access, and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repository} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"there is no repository {repository} at {_host()}, or HF_TOKEN may not see it"
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so the hub is not asked; unset it") from error
    except (requests.ConnectionError, requests.Timeout, LocalEntryNotFoundError) as error:
        raise HubError(
            f"{_host()} cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT"
        ) from error
    except EntryNotFoundError as error:
        raise HubError(f"{repository} lost a file while it was {what}; try again") from error
    except HFValidationError as error:
        raise HubError(f"{repository} is not a name that the hub allows; write ORG/NAME") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        why = {401: "HF_TOKEN is not valid", 403: "HF_TOKEN may not do this", 429: "too many requests"}
        raise HubError(
            f"{repository} could not be {what}: {_host()} answered {code}; {why.get(code, 'try again later')}"
        ) from error
    except (requests.RequestException, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise HubError(
            f"{repository} could not be {what}: {_host()} did not answer as a hub does "
            f"({type(error).__name__}); check HF_ENDPOINT, or try again"
        ) from error
    except OSError as error:
        # The library's own complaint of a download that is cut short has no number.
        if error.errno is not None:
            raise
        raise HubError(f"{repository} could not be {what}: a transfer was cut short; try again") from error


def _host() -> str:
    # Without the name and the password that an address may hold.
    return re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)
