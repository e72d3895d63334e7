"""What a dataset's storage needs besides its own file: filters, and files of raw data."""

from __future__ import annotations

import os

import h5py

from .system_errors import raise_system_error

__all__ = ["raw_files", "storage_faults"]


def storage_faults(dataset: h5py.Dataset) -> list[str]:
    """Return why a dataset's elements cannot be read, one line each; empty if they can.

    HDF5 silently reads zeros where a file of raw data has been truncated.
    """
    try:
        return [*_missing_filters(dataset), *_short_files(dataset)]
    except RuntimeError as error:  # from HDF5, on invalid addresses
        raise_system_error(error, dataset.file.filename)
        return [f"the file is damaged ({error})"]


def raw_files(dataset: h5py.Dataset) -> dict[str, int]:
    """Return a dataset's files of raw data, and how many bytes each must have."""
    files: dict[str, int] = {}
    left = int(dataset.nbytes) if dataset.external else 0
    for name, offset, size in dataset.external or ():
        part = min(left, int(size))
        path = _raw_path(dataset, name)
        files[path] = max(files.get(path, 0), int(offset) + part if part else 0)
        left -= part
    return files


def _raw_path(dataset: h5py.Dataset, name: str) -> str:
    """Return where HDF5 looks for a file of raw data: by default in the working directory."""
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX") or os.fsdecode(
        dataset.id.get_access_plist().get_efile_prefix()
    )
    folder = os.path.dirname(os.path.abspath(dataset.file.filename))
    return os.path.abspath(os.path.join(prefix.replace("${ORIGIN}", folder), name))


def _short_files(dataset: h5py.Dataset) -> list[str]:
    if dataset.shape is None or not dataset.id.get_storage_size():
        return []
    faults = []
    for path, needed in raw_files(dataset).items():
        if not os.path.isfile(path):
            faults.append(f"there is no file {path}, which holds its raw data")
        elif os.path.getsize(path) < needed:
            faults.append(
                f"{path}, which holds its raw data, has been cut short: it has "
                f"{os.path.getsize(path)} bytes of {needed}"
            )
    return faults


def _missing_filters(dataset: h5py.Dataset) -> list[str]:
    if dataset.chunks is None or not dataset.id.get_storage_size():
        return []
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    return [
        f"it is packed with filter {code} ({os.fsdecode(name) or 'without a name'}), for which "
        "HDF5 has no plugin here: import hdf5plugin first, or set HDF5_PLUGIN_PATH"
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]
