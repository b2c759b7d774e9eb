"""Read COCO files: plain ones, COCO-Annotator's exports, and Roboflow's (one ``_annotations.coco.json`` per split).

An IDD folder is COCO too, so importing one again, say to rename classes, keeps all its fields.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from implantdet.data.checks import MEASURES, escapes
from implantdet.data.idd import read_json
from implantdet.data.problems import DataError, Problem
from implantdet.data.source import FileIndex, Source, SourceImage, SourceObject, split_of

_LISTS = ("images", "annotations", "categories")
_IMAGE_FIELDS = ("patient_id", "source_id", "modality", "split", "mm_per_pixel", "mm_per_pixel_matrix")
_ANNOTATION_FIELDS = ("product_line", "axis", "visible_fraction", *MEASURES)
# COCO-Annotator keeps whole numbers and text alone in its metadata: 0.05 comes out as 0.
_NOT_IN_METADATA = {"mm_per_pixel_matrix", "axis", "visible_fraction", *MEASURES}


def read_coco(src: Path) -> Source:
    """Read the COCO file ``src``, or every COCO file below the folder ``src``."""
    root = src.parent if src.is_file() else src
    index = FileIndex(root)
    source = Source(root, notes=index.notes())
    files = [PurePosixPath(src.name)] if src.is_file() else [path for path in index.files if path.suffix == ".json"]
    for file in files:
        try:
            content = read_json(index.inside(file))
        except DataError as error:
            source.problems.append(Problem(str(file), "", str(error)))
            continue
        lacking = [key for key in _LISTS if not isinstance(content, dict) or key not in content]
        if lacking:
            source.notes.append(f"{file}: left aside, it is no COCO file: it has no {', '.join(lacking)}")
        else:
            _read_file(source, index, file, content)
    recorded = {image.path for image in source.images}
    unrecorded = [path for path in index.images() if path not in recorded]
    if unrecorded:
        source.notes.append(f"{len(unrecorded)} image file(s) have no record, such as {unrecorded[0]}")
    return source


def _read_file(source: Source, index: FileIndex, file: PurePosixPath, content: dict[str, Any]) -> None:
    annotations = _records(source, file, content, "annotations")
    categories = _read_categories(source, file, _records(source, file, content, "categories"), annotations)
    images: dict[Any, SourceImage] = {}
    records = _records(source, file, content, "images")
    for number, record in enumerate(records, start=1):
        path, fault = _find_image(index, file, record)
        size = (record["width"], record["height"]) if {"width", "height"} <= set(record) else None
        fields = {**split_of(path), **_fields(record, _IMAGE_FIELDS)}
        image_id = record.get("id")
        image = SourceImage(str(file), f"image {image_id!r}", path, size, fields=fields, fault=fault)
        if not isinstance(image_id, (int, str)):
            image.record, image.fault = f"image number {number}", f"'id' must be a number or a text; found {image_id!r}"
        elif image_id in images:
            # Nobody knows which of them an annotation means.
            for one, other in ((image, images[image_id]), (images[image_id], image)):
                one.fault = one.fault or f"duplicate id: {other.path} has it too"
        else:
            images[image_id] = image
        source.images.append(image)
    _read_annotations(source, file, annotations, images, categories)
    lossy = {key for record in (*records, *annotations) for key in _metadata(record)} & _NOT_IN_METADATA
    if lossy:
        source.notes.append(
            f"{file}: {', '.join(sorted(lossy))} in the metadata left aside: COCO-Annotator keeps no fractions "
            "and lists; put them into the records themselves"
        )
    isbbox = sum(bool(annotation.get("isbbox")) for annotation in annotations)
    if isbbox:
        source.notes.append(
            f"{file}: {isbbox} annotation(s) were drawn as boxes (isbbox); their rectangles are no masks"
        )


def _read_annotations(
    source: Source,
    file: PurePosixPath,
    annotations: list[dict[str, Any]],
    images: dict[Any, SourceImage],
    categories: dict[Any, str],
) -> None:
    seen: set[Any] = set()
    for number, annotation in enumerate(annotations, start=1):
        ids = [annotation.get(key) for key in ("id", "image_id", "category_id")]
        record = f"annotation {ids[0]!r}"
        if not all(isinstance(value, (int, str)) for value in ids):
            record = f"annotation number {number}"
            reason = f"'id', 'image_id' and 'category_id' must be numbers or texts; found {ids!r}"
        elif ids[0] in seen:
            reason = "duplicate id"
        elif ids[1] not in images:
            reason = f"annotation of an unknown image: image_id {ids[1]!r}"
        elif ids[2] not in categories:
            reason = f"unknown class: category_id {ids[2]!r}"
        elif annotation.get("iscrowd", 0) not in (0, False):
            reason = "a region of many objects (iscrowd); implants are annotated one by one"
        else:
            images[ids[1]].objects.append(_object(annotation, record, categories[ids[2]]))
            reason = None
        seen.update(ids[:1] if isinstance(ids[0], (int, str)) else [])
        if reason:
            source.problems.append(Problem(str(file), record, reason))
            source.lost_annotations += 1


def _object(annotation: dict[str, Any], record: str, label: str) -> SourceObject:
    fields = _fields(annotation, (*_ANNOTATION_FIELDS, "implant_id"))
    group = fields.pop("implant_id", None)
    # COCO-Annotator gives a box that somebody drew the outline of the box as a mask.
    mask = None if annotation.get("isbbox") else annotation.get("segmentation") or None
    return SourceObject(record, label, annotation.get("bbox"), mask, fields, None if group is None else str(group))


def _records(source: Source, file: PurePosixPath, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = content[key] if isinstance(content[key], list) else [content[key]]
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            source.problems.append(
                Problem(str(file), f"{key}, number {number}", f"expected an object; found {record!r}")
            )
            source.lost_images += key == "images"
            source.lost_annotations += key == "annotations"
    return [record for record in records if isinstance(record, dict)]


def _metadata(record: dict[str, Any]) -> dict[str, Any]:
    """What COCO-Annotator's users have entered for an image or an annotation."""
    metadata = record.get("metadata")
    return {k: v for k, v in metadata.items() if v not in (None, "")} if isinstance(metadata, dict) else {}


def _fields(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Optional fields, from the record or from what COCO-Annotator's users enter as its metadata."""
    entered = {key: value for key, value in _metadata(record).items() if key not in _NOT_IN_METADATA}
    merged = {**entered, **record}
    fields = {key: merged[key] for key in keys if merged.get(key) not in (None, "")}
    for key in {"patient_id", "source_id"} & set(fields):
        fields[key] = str(fields[key])
    return fields


def _find_image(index: FileIndex, file: PurePosixPath, record: dict[str, Any]) -> tuple[PurePosixPath, str | None]:
    name = record.get("file_name")
    if isinstance(record.get("path"), str) and not escapes(str(name)):
        # COCO-Annotator strips file_name of its folders; the end of its own path tells equal names apart.
        parts = PurePosixPath(record["path"]).parts
        for start in range(1, len(parts) - 1):
            found, wrong = index.find("/".join(parts[start:]), file)
            if wrong is None:
                return found, None
    return index.find(name, file)


def _read_categories(
    source: Source, file: PurePosixPath, categories: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> dict[Any, str]:
    """Class name of each category id; the classes are added to ``source``."""
    used = {str(annotation.get("category_id")) for annotation in annotations}
    parents = {category.get("supercategory") for category in categories}
    names: dict[Any, str] = {}
    ambiguous: set[Any] = set()
    for category in categories:
        category_id, name = category.get("id"), category.get("name")
        record = f"category {category_id!r}"
        supercategory = category.get("supercategory")
        if not isinstance(category_id, (int, str)) or not isinstance(name, str) or not name:
            source.problems.append(Problem(str(file), record, f"expected an id and a name; found {category!r}"))
        elif category_id in names:
            source.problems.append(Problem(str(file), record, f"duplicate id: {names[category_id]!r} has it too"))
            ambiguous.add(category_id)
        elif name in names.values():
            source.problems.append(Problem(str(file), record, f"duplicate name {name!r}"))
        elif str(category_id) not in used and name in parents and supercategory in (None, "", "none"):
            # Roboflow heads its list with the name of the project, which no annotation uses.
            source.notes.append(f"{file}: {record} {name!r} heads the others and has no annotation; left aside")
        else:
            names[category_id] = name
            parent = supercategory if isinstance(supercategory, str) and supercategory != "none" else ""
            source.classes.setdefault(name, parent)
    return {category_id: name for category_id, name in names.items() if category_id not in ambiguous}
