import pytest
import yaml

from implantdet.taxonomy import THIRDS, Taxonomy, default_taxonomy


def write(folder, content):
    path = folder / "taxonomy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def small():
    return {
        "thirds": {"coronal": {"level": ["bone", "tissue"]}, "middle": {"body": ["straight", "tapered"]}, "apical": {}},
        "systems": ["A", "B"],
    }


def test_default_has_the_axes_of_table_1():
    axes = [axis.key for axis in default_taxonomy().axes]
    assert axes == [
        "coronal.level",
        "coronal.microthread",
        "coronal.thread",
        "middle.body",
        "middle.thread",
        "apical.groove",
        "apical.hole",
        "apical.body",
        "apical.apex",
    ]
    assert default_taxonomy().systems == ("Bego", "Bicon", "ITI", "other")


def test_categories_are_unique_and_numbered_from_one():
    categories = default_taxonomy().coco_categories()
    assert [category["id"] for category in categories] == list(range(1, len(categories) + 1))
    assert len({category["name"] for category in categories}) == len(categories) == 27 + 4
    assert {category["supercategory"] for category in categories} == {*THIRDS, "system"}


def test_names_lead_back_to_their_axis(tmp_path):
    taxonomy = Taxonomy.from_yaml(write(tmp_path, small()))
    assert taxonomy.part_categories == (
        "coronal.level.bone",
        "coronal.level.tissue",
        "middle.body.straight",
        "middle.body.tapered",
    )
    assert taxonomy.axis_of("middle.body.tapered") is taxonomy.axes[1]
    assert taxonomy.axis_of("B") is None
    assert taxonomy.supercategory("B") == "system"
    assert taxonomy.supercategory("caries") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("systems"), "expected the keys 'thirds' and 'systems'"),
        (lambda content: content["thirds"].pop("apical"), "must list coronal, middle, apical"),
        (lambda content: content["thirds"]["coronal"].update(level=["bone"]), "'coronal.level' must list two or more"),
        (lambda content: content.update(systems=["A", "A"]), "'systems' names a value twice"),
        (lambda content: content.update(systems=["A", ""]), "'systems' must list two or more names"),
        (lambda content: content["thirds"].update(apical=None), "'apical' must map axes to their values; found None"),
        (
            lambda content: content["thirds"]["middle"].update(thread=["v_60.5", "none"]),
            "name 'v_60.5'; .*without a dot",
        ),
        (lambda content: content["thirds"]["middle"].update({"a.b": ["x", "y"]}), "name 'a.b'; .*without a dot"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    content = small()
    change(content)
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_yaml(write(tmp_path, content))
