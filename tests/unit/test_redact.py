"""Secrets are found by variable, form and place; what is no secret stays; two tokens give one run."""

import json

import pytest
import yaml
from omegaconf import OmegaConf

from rowsft.config.compose import compose
from rowsft.config.run_spec import run_spec
from rowsft.output import redact
from rowsft.output.secret_forms import names_secret, variable_is_secret
from rowsft.store import Store
from rowsft.store.score_cache import ScoreCache
from rowsft.tracking.tracker import WandbTracker

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r"
TOKENS = {
    "hugging face": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "openai": "sk-proj-" + "aB3" * 16,
    "anthropic": "sk-ant-api03-" + "aB3_" * 12,
    "github": "ghp_" + "a1B2" * 9,
    "github fine": "github_pat_11AAAAAAA0" + "a1B2" * 9,
    "gitlab": "glpat-" + "a1B2" * 5,
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "slack": "xoxb-123456789012-abcdefghij",
    "google": "AIza" + "aB3-_" * 7,
    "jwt": JWT,
    "wandb": "0123456789abcdef0123456789abcdef01234567",
    "wandb new": "wandb_v1_" + "aB3_" * 10,
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Each test starts without what others learnt."""
    monkeypatch.setattr(redact, "_interpolated", set())
    monkeypatch.setattr(redact, "_credentials", set())


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("where", ["{}", "before {} after", "a={},b", '"{}"'])
def test_texts_in_the_form_of_a_token_are_masked(token, where):
    found = redact.config({"a": {"b": [where.format(token)]}})["a"]["b"][0]
    if token == TOKENS["wandb"] and where != "{}":
        # A commit looks the same.
        assert found == where.format(token)
    else:
        assert token[8:] not in found and redact.MASK in found


@pytest.mark.parametrize(
    "value",
    [
        "lowest(taylor)",
        "risk-management-models-large-v2-2024",
        "sk-learn-text-classification-v2",
        "task-understanding-benchmark-2024a",
        "hf_internal_testing/tiny-random-bert",
        "package:minilm",
        "meta-llama/Meta-Llama-3-8B",
        "https://huggingface.co/org/name/resolve/main/file@v2.csv",
        "https://host:8080/path@v1",
        "Email:someone@example.com {prompt}",
        "Q: {prompt}\nA:",
        "data/reviews@2024.csv",
        "model.layers.0.self_attn.q_proj",
        "",
        "***",
    ],
)
def test_what_is_no_secret_stays(value):
    config = {
        "task": {"prompt": value, "data": {"path": value.replace("Email:", "")}},
        "model": {"name": value, "pad_token": "[PAD]"},
    }
    assert redact.config(config) == config


def test_a_commit_stays_where_a_revision_stands_and_numbers_stay_numbers():
    commit = "0123456789abcdef0123456789abcdef01234567"
    config = {
        "model": {"revision": commit},
        "revisions": {"model": commit},
        "environment": {"git_commit": commit},
        "trainer": {"learning_rate": 1e-3, "steps": 5, "bf16": True, "x": None},
        "train_tokens": 12345678,
    }
    assert redact.config(config) == config


@pytest.mark.parametrize(
    ("address", "recorded"),
    [
        ("https://bob:S3cretPw@hub.example/org/m", "https://hub.example/org/m"),
        ("https://S3cretPw@hub.example/m", "https://hub.example/m"),
        ("https://bob:p@S3cretPw@hub.example/m", "https://hub.example/m"),
        ("https:/bob:S3cretPw@hub.example/m", "https:/hub.example/m"),
        ("s3://KEY:S3cretPw@bucket/p", "s3://bucket/p"),
        ("git+ssh://git:S3cretPw@host/x.git@v1", "git+ssh://host/x.git@v1"),
        ("user:S3cretPw@hub.example/m", "***@hub.example/m"),
        ("https://host/x?token=S3cretPw&rev=1", "https://host/x?token=***&rev=1"),
        ("https://host/x?a=1&X-Amz-Signature=S3cretPw", "https://host/x?a=1&X-Amz-Signature=***"),
    ],
)
def test_addresses_are_recorded_without_credentials(address, recorded):
    cleaned = redact.config({"model": {"source": address}})
    assert cleaned == {"model": {"source": recorded}} and redact.config(cleaned) == cleaned
    assert "S3cretPw" not in redact.text(f"OSError: {address} is gone (S3cretPw)".replace("(S3cretPw)", ""))
    assert "S3cretPw" not in redact.override(f"model.source={address}")


def test_a_password_of_a_configurations_url_is_known_in_messages():
    redact.config({"model": {"source": "https://bob:S3cretPw@hub.example/m"}})
    assert redact.text("401 for S3cretPw") == "401 for ***"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")),
        *((name, True) for name in ("PGPASSWORD", "MY_SECRET_2", "DB_PASSWD", "hub_token", "HFTOKEN", "DEPLOY_KEY")),
        *((name, True) for name in ("GITHUB_PAT", "CREDENTIALS", "KEY1", "OPENAI_APIKEY", "TOKEN_A", "PASSPHRASE")),
        *((name, False) for name in ("PWD", "HOME", "PATH", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "MONKEY")),
        *((name, False) for name in ("SSH_AUTH_SOCK", "KEYBOARD_LAYOUT", "DATA_DIR", "OMP_NUM_THREADS", "COMPASS")),
    ],
)
def test_variables_that_hold_secrets_by_their_name(name, secret):
    assert variable_is_secret(name) is secret


@pytest.mark.parametrize(
    ("key", "secret"),
    [("token", 1), ("use_auth_token", 1), ("api_key", 1), ("password", 1), ("hf_token", 1), ("model.api-key", 1)]
    + [("pad_token", 0), ("eos_token", 0), ("tokens_per_second", 0), ("key", 0), ("max_tokens", 0), ("target", 0)],
)
def test_keys_that_hold_secrets_by_their_name(key, secret):
    assert names_secret(key) == bool(secret)
    value = redact.config({"model": {key: "whatever"}})["model"][key]
    assert value == ("***" if secret else "whatever")


def test_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "plainwords")
    monkeypatch.setenv("DB_PASSWORD", 'p@ss/word "x"')
    monkeypatch.setenv("SHORT_SECRET", "ab12")
    monkeypatch.setenv("PIN_TOKEN", "90210")
    config = {
        "a": "plainwords",
        "b": ["x-plainwords-y", 'p@ss/word "x"', "p%40ss%2Fword%20%22x%22"],
        "c-plainwords": "ab12",
        "d": "cab123",
        "e": 90210,
    }
    cleaned = redact.config(config)
    assert cleaned == {"a": "***", "b": ["x-***-y", "***", "***"], "c-***": "***", "d": "cab123", "e": 90210}
    said = redact.text('ValueError: plainwords, {"x": "p@ss/word \\"x\\""}')
    assert "plainwords" not in said and "p@ss" not in said


@pytest.mark.parametrize(
    "word", ["lora", "row_sft", "validation", "accuracy", "bert_base", "minilm", "taylor_row", "llama3_8b", "linear"]
)
def test_a_password_that_is_a_word_of_the_suite_hides_nothing(monkeypatch, word):
    monkeypatch.setenv("DB_PASSWORD", word)
    config = {"name": word, f"{word}_path": None, word: 1, "x": [f"a {word} b"]}
    assert redact.config(config) == config and redact.text(f"{word}: 0.5") == f"{word}: 0.5"
    assert redact.config({"tracker": {"password": word}}) == {"tracker": {"password": "***"}}


@pytest.mark.parametrize("word", ["swordfish", "letmein", "correct horse", "hunter2", "lora2000"])
def test_a_password_that_is_another_word_is_masked(monkeypatch, word):
    monkeypatch.setenv("DB_PASSWORD", word)
    assert redact.config({"name": word}) == {"name": "***"} and redact.text(f"no {word} here") == "no *** here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("https_proxy", "http://bob:S3cretPw@proxy.example:3128"),
        ("DATABASE_URL", "postgres://bob:S3cretPw@db.example/x"),
        ("PIP_INDEX_URL", "https://__token__:S3cretPw@host/simple"),
        ("STORAGE_CONNECTION_STRING", "Protocol=https;AccountName=bob;AccountKey=S3cretPw;Suffix=x"),
        ("SENTRY_DSN", "https://S3cretPw0123456789@host/5"),
    ],
)
def test_passwords_of_addresses_in_the_environment_are_known(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert "S3cretPw" not in redact.text(f"407 for {value}")
    secret = "S3cretPw0123456789" if "DSN" in name else "S3cretPw"
    assert redact.text(f"407 for {secret}") == "407 for ***"
    assert redact.config({"task": {"name": f"x{secret}"}}) == {"task": {"name": "x***"}}


@pytest.mark.parametrize(
    "said",
    [
        "{'Authorization': 'Basic S3cretPwQ=='}",
        '"Authorization": "Bearer S3cretPw"',
        "Authorization: Token S3cretPw",
        "AccountName=x;AccountKey=S3cretPw==;EndpointSuffix=y",
        "SharedAccessKey=S3cretPw",
        "Server=db;Uid=bob;Pwd=S3cretPw;",
        "curl --password S3cretPw host",
        "X-Api-Key: S3cretPw",
    ],
)
def test_what_messages_say_of_secrets_is_masked(said):
    assert "S3cretPw" not in redact.text(said)


@pytest.mark.parametrize(
    "override",
    [
        "+tracker.login={api_key: S3cretPw, user: x}",
        "+tracker.login={user: x, inner: {token: S3cretPw}}",
        "demonstration={notes: [x], hf_token: 'S3cretPw x'}",
        "+tracker.env=[password=S3cretPw]",
    ],
)
def test_overrides_with_mappings_are_printed_without_secrets(override):
    assert "S3cretPw" not in redact.override(override)


@pytest.mark.parametrize("written", ["${oc.env:HF_TOKEN}", "a${oc.env:HF_TOKEN}b", '${oc.env:"HF_TOKEN"}'])
@pytest.mark.parametrize("key", ["model.source", "experiment_name", "task.name", "model.revision"])
def test_interpolations_of_secret_variables_do_not_decide_the_identity(monkeypatch, tmp_path, written, key):
    found = set()
    for token in ("first-planted-value", "other-planted-one"):
        monkeypatch.setenv("HF_TOKEN", token)
        config = compose([f"store={tmp_path}", f"++{key}='{written}'"])
        assert token in OmegaConf.select(config, key), "the run itself has the real value"
        spec = run_spec(config)
        assert token not in json.dumps(redact.config(spec.config)) and token not in spec.label + spec.experiment
        with Store(tmp_path).open(spec.config) as run:
            assert run.id == spec.run_id
        found.add(spec.run_id)
    assert len(found) == 1
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"planted" not in written and b"***" in written


def test_decoded_and_nested_interpolations_are_known_too(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "86753")
    monkeypatch.setenv("NAME_OF_IT", "MY_SECRET")
    config = compose(
        [
            "seed='${oc.decode:${oc.env:MY_SECRET}}'",
            "model.revision='${oc.env:${oc.env:NAME_OF_IT}}'",
            "model.name='${model.revision}'",
        ]
    )
    assert (config.seed, config.model.name) == (86753, "86753")
    cleaned = redact.config(OmegaConf.to_container(config))
    assert "86753" not in json.dumps(cleaned) and cleaned["seed"] == cleaned["model"]["name"] == "***"


def test_an_interpolation_of_another_variable_is_recorded_as_its_value(monkeypatch):
    monkeypatch.setenv("DATA_DIR", "/data/reviews")
    config = compose(["model.revision='${oc.env:DATA_DIR}'"])
    assert redact.config(run_spec(config).config)["model"]["revision"] == "/data/reviews"
    monkeypatch.setenv("DATA_DIR", "/data/others")
    assert run_spec(compose(["model.revision='${oc.env:DATA_DIR}'"])).run_id != run_spec(config).run_id


def test_nothing_that_the_store_writes_holds_a_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "plantedtoken")
    source = "https://bob:plantedpw@hub.example/m"
    config = {
        "method": {"name": "lora"},
        "model": {"name": "m", "source": source, "token": "plantedkey"},
        "experiment_name": "of plantedtoken",
        "demonstration": {"notes": ["with plantedtoken"]},
        "seed": 1,
    }
    with pytest.raises(OSError), Store(tmp_path).open(config) as run:
        attempt = run.begin(environment={"packages": {"x": "plantedtoken"}})
        attempt.update(model_facts={"source": source, "revision": "plantedtoken"}, resolved={"x": "plantedtoken"})

        def fill(folder):
            (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": source, "r": 8}))
            (folder / "README.md").write_text(f"base_model: {source}\nplantedtoken")
            (folder / "weights.bin").write_bytes(b"\x00\x01")

        attempt.write_folder("adapter", fill)
        raise OSError(f"401 at {source} with plantedtoken; password=plantedpw2")
    ScoreCache(tmp_path).put({"model": config["model"]}, {})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        assert b"planted" not in path.read_bytes(), path
    record = Store(tmp_path).get(run.id)
    assert record.latest.state == "failed" and "401 at https://hub.example/m" in record.latest.error.message
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == record.config
    adapter = run.path / "attempt-1" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 8
    assert (adapter / "weights.bin").read_bytes() == b"\x00\x01"


def test_a_dashboard_gets_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "plantedtoken")
    monkeypatch.setenv("WANDB_API_KEY", "planted" + "0" * 33)
    monkeypatch.setattr("sys.argv", ["rowsft", "run", "model.source=https://u:plantedpw@h/m"])
    config = {"method": {"name": "plantedtoken"}, "model": {"source": "https://u:plantedpw@h/m"}, "seed": 1}
    tracker = WandbTracker(mode="offline", dir=str(tmp_path), tags=["plantedtoken"])
    tracker.start("0123456789ab-1", config, "plantedtoken")
    tracker.log(1, {"loss": 0.5})
    tracker.finish("done")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert b"planted" not in path.read_bytes(), path
