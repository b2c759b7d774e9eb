from implantdet.evaluation.implant_table import implant_table

COCO = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "D-ECE"), 50.0)
RANKED = {"num_implants": 7, "top1": 0.75, "top3": 1.0, "unknown": 0.0}
RANKED |= {"coverage": 0.9, "coverage_of": {"Bego": 0.875}, "mean_size": 1.25}


def metrics(stage1):
    return {
        "parts": {"AP": 40.25, "AP50": 70.0, "AP75": 30.0, "AR100": 55.0, "num_categories": 28},
        "detections": {"D-ECE": 7.25},
        "stage1": stage1,
        "stage2": {"by_system": None, "any_system": COCO | {"AP": 61.5}, "fps": 3.0},
        "grouping": {"exact": 0.96, "num_implants": 25},
        "inferred": {
            "recall": float("nan"),
            "precision": 0.375,
            "edges_within_95": 0.75,
            "num_missed": 0,
            "num_judged": 8,
        },
        "axes": {"coronal.level": {"accuracy": 0.5, "balanced_accuracy": 0.25}},
        "systems": RANKED,
        "lines": RANKED | {"top1": 0.125},
        "system_confusion": {"labels": ["ITI", "background"], "confusion": [[6, 1], [2, 0]]},
    }


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_both_stages_stand_one_below_the_other():
    table = rows(implant_table(metrics({"by_system": COCO, "any_system": COCO, "fps": 4.0})))
    assert table[2] == ["design parts", "", "40.25", "70.00", "30.00", "", "", "", "55.00", "", ""]
    assert [table[3][column] for column in (0, 2, 9, 10)] == ["all detections", "", "7.25", ""]
    assert [row[:3] for row in table[4:7]] == [
        ["detected whole", "by system", "50.00"],
        ["detected whole", "any system", "50.00"],
        ["assembled", "any system", "61.50"],  # by system there is nothing
    ]
    assert table[0][-1] == "images/s"
    assert [row[-1] for row in table[4:7]] == ["4.00", "4.00", "3.00"]


def test_shares_axes_and_confusion_are_told():
    table = rows(implant_table(metrics(None)))
    for row in (
        ["grouped exactly", "0.960", "of 25 implants with a detected third"],
        ["missed thirds inferred", "nan", "of 0"],
        ["inferred thirds right", "0.375", "of 8"],
        ["their edges in 1.96 SD", "0.750", "0.950 if deviations are right"],
        ["Bego in its set", "0.875", ""],
        ["system top-1", "0.750", "of 7 found implants"],
        ["product line top-1", "0.125", "of 7 found implants"],
        ["called unknown", "0.000", "of those that could be judged"],
        ["system in its set", "0.900", "of 1.25 names on average"],
        ["coronal.level", "0.500", "0.250"],
        ["ITI", "6", "1"],
        ["background", "2", "0"],
    ):
        assert row in table
