"""Secrets planted wherever a user may put one: a sweep, its dashboard, its report and its log hold none of them."""

import json
import shutil

from rowsft.store import Store

PLANTED = {
    "HF_TOKEN": "planted-token-value",
    "DEPLOY_PASSWORD": "planted/pass word",
    "MY_SECRET": "p1n9-and-more",
    "PIN_TOKEN": "8675309",
    "WANDB_API_KEY": "d" * 40,
}
LITERAL = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
FOUND = [*PLANTED.values(), LITERAL, "PlantedPw77", "planted%2Fpass"]


def test_no_file_and_no_line_holds_a_planted_secret(workshop, tmp_path):
    # A folder whose name is a URL with credentials, so that the run finds its model there.
    host = tmp_path / "https:" / "bob:PlantedPw77@hub.example"
    host.mkdir(parents=True)
    shutil.copytree(workshop.folder / "models" / "bert", host / "bert")
    store, dashboard, report = tmp_path / "runs", tmp_path / "dashboard", tmp_path / "report"
    settings = [text for text in workshop.overrides("bert") if not text.startswith(("model.source=", "store="))]
    arguments = [
        *settings,
        "trainer.steps=2",
        "trainer.memory_probe_steps=0",
        f"store={store}",
        f"model.source={tmp_path}/https:/bob:PlantedPw77@hub.example/bert",
        "method=row_sft",
        "method.importance=taylor_row",
        "task.name='n${oc.env:HF_TOKEN}x'",
        "tracker=wandb",
        "tracker.mode=offline",
        f"tracker.dir={dashboard}",
        "tracker.tags=['t${oc.env:DEPLOY_PASSWORD}']",
        "demonstration={is: true, notes: ['${oc.env:MY_SECRET}', '${oc.decode:${oc.env:PIN_TOKEN}}', " + LITERAL + "]}",
        "seed=1,2",
    ]
    swept = workshop.rowsft("sweep", *arguments, **PLANTED)
    assert swept.returncode == 0 and "2 done" in swept.stdout, swept.stderr
    again = workshop.rowsft("sweep", *arguments, **PLANTED | {"HF_TOKEN": "another-planted-one"})
    assert again.stdout.count("done already") == 2, "a run's id does not depend on a token"
    reported = workshop.rowsft("report", "--store", str(store), "--out", str(report), **PLANTED)
    assert reported.returncode == 0, reported.stderr
    where = ("--store", str(store), "--dir", str(dashboard))
    mirrored = [workshop.rowsft("track", action, *where, **PLANTED) for action in ("replay", "table")]
    assert [done.returncode for done in mirrored] == [0, 0], [done.stderr for done in mirrored]

    records = Store(store).runs()
    assert len(records) == 2 and {record.config["task"]["name"] for record in records} == {"***"}
    assert all(record.config["model"]["source"].endswith("https:/hub.example/bert") for record in records)
    adapter = json.loads((records[0].file("adapter") / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"].endswith("https:/hub.example/bert")
    said = "".join(done.stdout + done.stderr for done in (swept, again, reported, *mirrored))
    files = [path for folder in (store, dashboard, report) for path in folder.rglob("*") if path.is_file()]
    assert (store / "multirun.yaml") in files and any(path.suffix == ".wandb" for path in files)
    for secret in [*FOUND, "another-planted-one"]:
        assert secret not in said, secret
        for path in files:
            # Digits of a short number may stand in a file of weights by chance; in a text they may not.
            if path.suffix not in (".safetensors", ".png") or len(secret) > 8:
                assert secret.encode() not in path.read_bytes(), (secret, path)
