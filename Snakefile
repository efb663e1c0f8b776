# The run matrix: a release -> its canonical tree -> one notebook run a data set -> the book. `make book` calls it:
#   snakemake --cores all --rerun-triggers params [--config profile=paper data=FOLDER] [--executor slurm --jobs 8]
# Whole slides, a job each (a folder that already holds results goes on where it was):
#   snakemake many_slides --cores all --resources gpu=1 --config slides=FOLDER [weights=MoNuSeg] [out=DIR] [options="--mpp 0.25"]
# A job is run again when a hash among its parameters has changed: of configuration, data or code, never of a date.

from functools import cache
from hashlib import sha256
from inspect import getfile
from pathlib import Path

from csamnet.config import PROFILES, experiment, make_config
from csamnet.datasets import DATASETS as TABLE
from csamnet.files import sha256_file
from csamnet.readers import READERS
from csamnet.readers.slides import SUFFIXES
from csamnet.results import fingerprint
from csamnet.samples import MAKERS

DATASETS = [name for name in TABLE if name in MAKERS]  # the nine of the paper
MEASURED = ["MoNuSeg", "Kumar", "LIDC-IDRI", "BUSI"]  # with runs on real images under results/
PROFILE, SEED = config.get("profile", "sample"), config.get("seed", 0)
EXPERIMENT, SEEDS = "MoNuSeg", int(config.get("seeds", 1))  # of the comparison and the ablation
RELEASES = str(config.get("data") or "")  # folder of real releases; look-alikes are made where it is empty
ELSEWHERE = ["PUMA"]  # data sets on which the experiment's network is measured as well
CODE = "csamnet/*.py", "csamnet/datasets.toml", "csamnet/pages/*", "csamnet/wsi/*"
ROOT = "data/prepared" if RELEASES else "data/prepared/samples"

if PROFILE != "sample" and not RELEASES:
    raise WorkflowError(f"profile {PROFILE} is for real images: name the folder of releases, data=FOLDER")


wildcard_constraints:
    dataset="|".join(TABLE),
    kind="comparison|ablation|generalisation",
    slides="BACH2018|InHouse",
    profile="|".join(PROFILES),


localrules:
    all,
    sample,
    measured,
    measured_experiment,
    figures,
    vendor,
    book,


def text(*patterns):
    """One hash over the names and contents of files."""
    files = sorted({path for pattern in patterns for path in Path().glob(pattern) if path.is_file()})
    return sha256(repr([(str(path), sha256_file(path)) for path in files]).encode()).hexdigest()


def listing(wildcards):
    """One hash over names, sizes and dates below a release, which may be too large to be read each time."""
    if not RELEASES:
        return text(f"data/samples/{wildcards.dataset}/**/*")
    stats = sorted((str(path), path.stat()) for path in Path(RELEASES).glob(f"{wildcards.dataset}/**/*"))
    return sha256(repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]).encode()).hexdigest()


def source(function):
    """One hash over the file that a function is from, and the one that its neighbours share."""
    path = Path(getfile(function))
    return text(*(str(p.relative_to(Path.cwd())) for p in {path, *path.parent.glob("common.py"), *path.parent.glob("tissue.py")}))


def reading(wildcards):
    """What a tree depends on besides the release: the table's entry, and the code that reads it."""
    entry = TABLE[wildcards.dataset]
    return [repr(entry), source(READERS[entry.reader]), text("csamnet/images.py", "csamnet/slides.py", "csamnet/prepare.py")]


def page(wildcards):
    """What a page depends on besides data and results: the template, the code, of the table its own entry."""
    return [repr(TABLE[wildcards.dataset]), text("notebooks/dataset.ipynb", "csamnet/*.py", "csamnet/pages/*")]


def run(wildcards, input):
    """The fingerprint of the training that a notebook shows."""
    made = make_config(PROFILE, dataset=wildcards.dataset, seed=SEED)
    return fingerprint(made, sha256_file(input.manifest))


def config_of(model, seed):
    return make_config(PROFILE, dataset=EXPERIMENT, model=model, seed=int(seed))


def configs(wildcards):
    """Of an experiment's trainings."""
    return [config_of(model, seed) for model in experiment(wildcards.kind, PROFILE) for seed in range(SEEDS)]


def runs(wildcards):
    """With real images, each training of an experiment is a job of its own; on samples they are too short for that."""
    made = [] if PROFILE == "sample" else configs(wildcards)
    return [f"results/{EXPERIMENT}/{config.name}/test/summary.json" for config in made]


def fingerprints(wildcards, input):
    manifest = sha256_file(input.manifest)
    return [fingerprint(config, manifest) for config in configs(wildcards)]


def experiment_page(wildcards):
    """What the page of an experiment depends on besides data and results."""
    return text(f"notebooks/{wildcards.kind}.ipynb", *CODE)


def results(wildcards):
    """One hash over the small files of the runs on real images; those on samples come with the pages that make them."""
    runs = [path for path in Path("results").glob("*/*") if "-sample-" not in path.name]
    return text(*(f"{path}{end}" for path in runs for end in ("", "/**/*.json", "/**/*.csv")))


rule all:
    input:
        "_build/html/index.html",


rule sample:
    output:
        update("data/samples/{dataset}/SAMPLE.json"),
    params:
        code=lambda wildcards: source(MAKERS[wildcards.dataset]),
    shell:
        "csamnet samples {wildcards.dataset}"


rule prepare:
    input:
        [] if RELEASES else "data/samples/{dataset}/SAMPLE.json",
    output:
        update(f"{ROOT}/{{dataset}}/manifest.csv"),
    params:
        source=f"{RELEASES or 'data/samples'}/{{dataset}}",
        root=ROOT,
        release=listing,
        code=reading,
    shell:
        "csamnet prepare {wildcards.dataset} --from {params.source:q} --root {params.root}"


rule notebook:
    input:
        template="notebooks/dataset.ipynb",
        manifest=f"{ROOT}/{{dataset}}/manifest.csv",
    output:
        "book/executed/{dataset}.ipynb",
    params:
        given=f"-p profile={PROFILE} -p seed={SEED}" + ("" if RELEASES else f" -p root={ROOT}"),
        fingerprint=run,
        page=page,
    threads: 8 if PROFILE != "sample" else 1  # small tensors: a second thread costs more than it brings
    resources:
        gpu=int(PROFILE != "sample"),
        mem_mb=16_000,
        runtime=24 * 60,
    shell:
        "csamnet notebook {input.template} {output} -p dataset={wildcards.dataset} {params.given}"


rule trained:
    input:
        manifest=f"{ROOT}/{{dataset}}/manifest.csv",
    output:
        update("results/{dataset}/{model}-{profile}-seed{seed}/test/summary.json"),
    params:
        fingerprint=lambda wildcards, input: fingerprint(
            config_of(wildcards.model, wildcards.seed), sha256_file(input.manifest)
        ),
    threads: 8
    resources:
        gpu=1,
        mem_mb=16_000,
        runtime=24 * 60,
    shell:
        "csamnet train {wildcards.dataset} --model {wildcards.model} --profile {wildcards.profile} --seed {wildcards.seed} && "
        "csamnet evaluate results/{wildcards.dataset}/{wildcards.model}-{wildcards.profile}-seed{wildcards.seed}"


rule experiment:
    input:
        runs,
        template="notebooks/{kind}.ipynb",
        manifest=f"{ROOT}/{EXPERIMENT}/manifest.csv",
        first=f"book/executed/{EXPERIMENT}.ipynb",  # trains the network that the others are compared with
    output:
        "book/executed/{kind}.ipynb",
    wildcard_constraints:
        kind="comparison|ablation",
    params:
        given=f"-p dataset={EXPERIMENT} -p profile={PROFILE} -p seeds={SEEDS}" + ("" if RELEASES else f" -p root={ROOT}"),
        fingerprints=fingerprints,
        page=experiment_page,
    shell:
        "csamnet notebook {input.template} {output} {params.given}"


rule generalisation:
    input:
        template="notebooks/generalisation.ipynb",
        manifest=f"{ROOT}/{EXPERIMENT}/manifest.csv",
        others=[f"{ROOT}/{name}/manifest.csv" for name in ELSEWHERE],
        trained=f"book/executed/{EXPERIMENT}.ipynb",
    output:
        "book/executed/generalisation.ipynb",
    params:
        given=f"-p dataset={EXPERIMENT} -p profile={PROFILE} -p seed={SEED} -p others={','.join(ELSEWHERE)}"
        + ("" if RELEASES else f" -p root={ROOT}"),
        fingerprint=lambda wildcards, input: fingerprint(make_config(PROFILE, dataset=EXPERIMENT, seed=SEED), sha256_file(input.manifest)),
        page=text("notebooks/generalisation.ipynb", *CODE),
    threads: 8 if PROFILE != "sample" else 1
    resources:
        gpu=int(PROFILE != "sample"),
        mem_mb=16_000,
        runtime=24 * 60,
    shell:
        "csamnet notebook {input.template} {output} {params.given}"


def slide_options(wildcards):
    """BACH2018 does not always say its resolution; look-alikes without annotation are worked at half of the nuclei's."""
    if RELEASES:
        return "-p mpp=0.467" * (wildcards.slides == "BACH2018")
    return "-p at=0.5 -p slides=1" * (wildcards.slides == "InHouse")


rule slides:
    input:
        template="notebooks/slides.ipynb",
        manifest=f"{ROOT}/{{slides}}/manifest.csv",
        trained="book/executed/{slides}.ipynb",
    output:
        page="book/executed/{slides}-slides.ipynb",
        tiles=directory("book/executed/tiles/{slides}"),
    params:
        given=f"-p profile={PROFILE} -p seed={SEED}" + (f" -p releases={RELEASES}" if RELEASES else f" -p root={ROOT} -p releases=data/samples"),
        options=slide_options,
        page=text("notebooks/slides.ipynb", *CODE),
    resources:
        gpu=int(PROFILE != "sample"),
        mem_mb=16_000,
        runtime=24 * 60,
    shell:
        "csamnet notebook {input.template} {output.page} -p dataset={wildcards.slides} {params.given} {params.options}"


rule figures:
    input:
        expand("book/executed/{kind}.ipynb", kind=["comparison", "ablation"]),
    output:
        "book/_generated/figures/architecture.svg",
    params:
        results=results,
        code=text(*CODE, "book/published/*"),
    shell:
        "csamnet figures"


rule measured_experiment:
    input:
        template="notebooks/{kind}.ipynb",
        trained="book/executed/{kind}.ipynb",
    output:
        "book/executed/{kind}-measured.ipynb",
    params:
        results=results,
        page=experiment_page,
    shell:
        f"csamnet notebook {{input.template}} {{output}} -p dataset={EXPERIMENT} -p measured=1"


rule measured:
    input:
        template="notebooks/measured.ipynb",
        trained=lambda wildcards: f"book/executed/{wildcards.dataset}.ipynb" if wildcards.dataset in DATASETS else [],
    output:
        "book/executed/{dataset}-measured.ipynb",
    params:
        results=results,
        page=text("notebooks/measured.ipynb", *CODE),
    shell:
        "csamnet notebook {input.template} {output} -p dataset={wildcards.dataset}"


SLIDES, SLIDES_OUT = config.get("slides"), config.get("out", "data/slides/own")


@cache
def slide_files():
    """Stem -> file, of a folder of slides of one's own."""
    files = [path for path in sorted(Path(SLIDES or ".").glob("*")) if path.suffix.lower() in SUFFIXES]
    named = {path.stem: path for path in files}
    if not SLIDES or not files:
        raise WorkflowError(f"name a folder of slides, slides=FOLDER; there is none in {SLIDES!r}")
    if len(named) < len(files) or any(set(stem) & set("{}") for stem in named):
        raise WorkflowError(f"slides in {SLIDES} need names that differ before the suffix, without braces")
    return named


rule many_slides:
    input:
        lambda wildcards: [f"{SLIDES_OUT}/{stem}/summary.csv" for stem in slide_files()],
    shell:
        "csamnet progress {SLIDES_OUT:q}"


rule slide:
    input:
        lambda wildcards: slide_files()[wildcards.stem],
    output:
        update(f"{SLIDES_OUT}/{{stem}}/summary.csv"),
    params:
        weights=config.get("weights", "MoNuSeg"),
        options=config.get("options", ""),
    threads: 8
    resources:
        gpu=1,
        mem_mb=8_000,
        runtime=24 * 60,
    shell:
        "csamnet slide {input:q} --out {SLIDES_OUT:q} --weights {params.weights:q} --workers {threads} {params.options}"


rule vendor:
    output:
        "book/vendor/stamp",
    params:
        code=text("book/vendor.py"),
    shell:
        "python book/vendor.py"


rule book:
    input:
        expand("book/executed/{dataset}.ipynb", dataset=DATASETS),
        expand("book/executed/{dataset}-measured.ipynb", dataset=MEASURED),
        expand("book/executed/{kind}{on}.ipynb", kind=["comparison", "ablation", "generalisation"], on=["", "-measured"]),
        expand("book/executed/{slides}-slides.ipynb", slides=["BACH2018", "InHouse"]),
        "book/_generated/figures/architecture.svg",
        "book/vendor/stamp",
    output:
        "_build/html/index.html",
    params:
        pages=text("_*.yml", "README.md", "data/*.md", "weights/*.md", "book/*.*", "book/_ext/*", "book/_templates/*", "book/assets/**/*", "book/published/*"),
        results=results,
        code=text(*CODE),
    shell:
        "jupyter-book build . --all -W --keep-going -q"
