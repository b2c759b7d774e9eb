"""What a reader of a foreign format hands to the import: images with their objects, nothing checked yet."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from implantdet.data.checks import escapes
from implantdet.data.dicom import looks_like_dicom
from implantdet.data.idd import IMAGES
from implantdet.data.images import SUFFIXES, is_hidden
from implantdet.data.problems import DataError, Problem

SPLITS = ("train", "valid", "val", "test")
# Roboflow renames NAME.jpg to NAME_jpg.rf.<hash>.jpg, once per copy that it makes of the image.
_ROBOFLOW = re.compile(r"(?P<name>.+)_(?P<suffix>jpe?g|png|tiff?|bmp|webp)\.rf\.[0-9A-Za-z]+$", re.IGNORECASE)


@dataclass
class SourceObject:
    """One annotation as it stands in the source.

    Attributes:
        record: where it stands in the file of its image.
        label: class name of the source.
        bbox: ``[x, y, w, h]``, or None to take it from the mask.
        segmentation: polygons or run-length code, or None.
        fields: optional fields of the IDD format.
        group: key that objects of one implant share within their image, or None.
    """

    record: str
    label: str
    bbox: Any
    segmentation: Any = None
    fields: dict[str, Any] = field(default_factory=dict)
    group: Any = None


@dataclass
class SourceImage:
    """One image as it stands in the source.

    Attributes:
        file: file that describes it, relative to the source folder.
        record: where in this file.
        path: the image, relative to the source folder.
        size: (width, height) that the record states, or None.
        relative: coordinates are fractions of the width and the height, not pixels.
        fields: optional fields of the IDD format.
        fault: why the image cannot be used, if the reader knows.
    """

    file: str
    record: str
    path: PurePosixPath
    size: tuple[Any, Any] | None = None
    relative: bool = False
    objects: list[SourceObject] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


@dataclass
class Source:
    """All that was read.

    Attributes:
        root: source folder, resolved.
        classes: supercategory of each class name ("" where the source has none), in the order of the source.
        lost_images: image records that are in ``problems`` and not in ``images``.
        lost_annotations: annotation records that are in ``problems`` and not in ``images``.
        notes: what was left aside although nothing is wrong with it.
    """

    root: Path
    images: list[SourceImage] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lost_images: int = 0
    lost_annotations: int = 0
    notes: list[str] = field(default_factory=list)


class FileIndex:
    """The files below a folder, found again by the paths that records give them.

    Exports move images: what a record calls ``a.png`` may lie in ``images/a.png`` or beside the record.

    Raises:
        DataError: a file name is not UTF-8, which no JSON file can hold.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        below = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file())
        self.hidden = [path for path in below if is_hidden(path)]
        self.files = sorted(set(below) - set(self.hidden))
        for path in self.files:
            try:
                str(path).encode()
            except UnicodeEncodeError as error:  # unpacked by a tool that took the names for those of another system
                raise DataError(f"{root}: the file name {os.fsencode(path)!r} is not UTF-8; rename the file") from error
        self._by_path = {composed(str(path)): path for path in self.files}
        self._by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
        for path in self.files:
            self._by_name[composed(path.name).lower()].append(path)

    def find(self, name: object, beside: PurePosixPath) -> tuple[PurePosixPath, str | None]:
        """The file at ``name``, beside the record or in ``images`` there; else the one file whose path ends with it.

        Of several such files, it is the one in or below the record's folder. A record in the folder of a split that
        names none itself means no file of another split.

        Args:
            name: path that a record gives, with / or \\ between its parts.
            beside: file of the record, relative to the folder.

        Returns:
            Path relative to the folder, and None or the reason why it cannot be used.
        """
        if not isinstance(name, str) or not name:
            return PurePosixPath("?"), f"missing image: the record names no file; found {name!r}"
        given = PurePosixPath(composed(name).replace("\\", "/"))
        places = [beside.parent / folder / given for folder in ("", IMAGES)]
        if ".." in given.parts:  # labelme's ../images/a.png beside labels/a.json stays in the source
            given = PurePosixPath(posixpath.normpath(beside.parent / given))
            places = [given]
        fault = escapes(str(given))
        if fault:
            return given, fault
        exact = [self._by_path[str(place)] for place in places if str(place) in self._by_path]
        if len(exact) == 1:
            return exact[0], self.fault(exact[0])
        alike = self._by_name.get(given.name.lower(), [])
        found = [path for path in alike if PurePosixPath(composed(str(path))).parts[-len(given.parts) :] == given.parts]
        split = _split(beside)
        if split and not _split(given):
            found = [path for path in found if _split(path) in ("", split)]
        if len(found) > 1:
            found = [path for path in found if path.is_relative_to(beside.parent)] or found
        if len(found) == 1:
            return found[0], self.fault(found[0])
        if found:
            return given, f"image name {name!r} stands for {len(found)} files: {', '.join(map(str, found[:3]))}"
        hint = f"; there is {alike[0]}" if alike else ""
        return given, f"missing image: no file {name!r} in the source{hint}"

    def fault(self, path: PurePosixPath) -> str | None:
        """Why a file that is there cannot be used: a link that leads out of the folder."""
        target = (self.root / path).resolve()
        return None if target.is_relative_to(self.root) else f"a link that leaves the folder, to {target}"

    def inside(self, path: PurePosixPath) -> Path:
        """Where the file at ``path`` lies.

        Raises:
            DataError: it lies outside the folder.
        """
        reason = self.fault(path)
        if reason:
            raise DataError(f"{path}: {reason}")
        return self.root / path

    def notes(self) -> list[str]:
        """What is left aside: hidden files, and links to folders, so that the source cannot lead anywhere else."""
        links = sorted(path for path in self.root.rglob("*") if path.is_symlink() and path.is_dir())
        notes = [f"{path.relative_to(self.root)}: a link to a folder, not followed" for path in links]
        if self.hidden:
            notes.append(f"{len(self.hidden)} hidden file(s), such as {self.hidden[0]}: left aside")
        return notes

    def images(self) -> list[PurePosixPath]:
        """Image files, by suffix, and DICOM files of any name in a folder named ``images``."""

        def is_image(path: PurePosixPath) -> bool:
            return path.suffix.lower() in SUFFIXES or (
                IMAGES in path.parent.parts and looks_like_dicom(self.root / path)
            )

        return [path for path in self.files if is_image(path)]


def composed(name: str) -> str:
    """A name in one Unicode form: a Mac writes ``ü`` as two characters, other systems as one (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name)


def split_of(path: PurePosixPath) -> dict[str, str]:
    """The field ``split``, if a folder of the path is named after one."""
    return next(({"split": part} for part in path.parent.parts if part.lower() in SPLITS), {})


def _split(path: PurePosixPath) -> str:
    """The split that a folder of the path is named after, however it is spelled; empty if there is none."""
    split = split_of(path).get("split", "").lower()
    return "valid" if split == "val" else split


def original_name(path: PurePosixPath) -> PurePosixPath | None:
    """Name of the image that Roboflow made a copy of, perhaps with another suffix; None for any other file."""
    match = _ROBOFLOW.fullmatch(path.stem)
    return PurePosixPath(f"{match['name']}.{match['suffix']}") if match else None
