"""A small data set in AdvertiseGen's format, and a tokenizer for it, made from a seed.

It stands in for the real data wherever those are not at hand: paths ``sample:train.json``,
``sample:dev.json`` and ``sample:tokenizer.model`` in a configuration. The texts follow the
attributes by rules that a tiny model learns within a minute.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from glm2.errors import ConfigError

SCHEME = "sample:"
FILES = ("train.json", "dev.json", "tokenizer.model")
TRAIN_ROWS = 480
DEV_ROWS = 40
VOCABULARY = 1000
SEED = 20231012

# Attribute -> value -> the clause that speaks of it. Rows name some attributes of a type in
# this order; their summary has one clause for each, in the same order.
_TYPES: Dict[str, Tuple[str, ...]] = {
    "上衣": ("版型", "材质", "颜色", "风格", "图案", "衣袖型", "衣款式"),
    "裙": ("裙型", "材质", "颜色", "风格", "图案", "裙长"),
    "裤": ("裤型", "材质", "颜色", "风格", "裤长", "裤腰型"),
}
_OPENINGS: Dict[str, str] = {"上衣": "这款上衣", "裙": "这款裙子", "裤": "这款裤子"}
_CLAUSES: Dict[str, Dict[str, str]] = {
    "版型": {
        "宽松": "宽松的版型穿着舒适自在",
        "修身": "修身的剪裁勾勒出身材曲线",
        "显瘦": "显瘦的设计藏起小肚子",
    },
    "裙型": {
        "百褶裙": "百褶的裙摆走动时灵动飘逸",
        "a字": "a字裙摆遮住大腿的赘肉",
        "鱼尾裙": "鱼尾的裙摆优雅又有女人味",
    },
    "裤型": {
        "直筒裤": "直筒的裤型修饰出笔直双腿",
        "阔腿裤": "阔腿的裤型走路自带气场",
        "背带裤": "背带的样式减龄又俏皮",
    },
    "材质": {
        "棉": "精选纯棉面料柔软亲肤",
        "牛仔布": "牛仔面料耐磨又有型",
        "雪纺": "轻薄的雪纺面料清爽透气",
        "羊毛": "细腻的羊毛面料温暖厚实",
    },
    "颜色": {
        "白色": "干净的白色清新百搭",
        "黑色": "经典的黑色沉稳大气",
        "红色": "热烈的红色衬得肤色白皙",
        "蓝色": "清澈的蓝色宁静优雅",
    },
    "风格": {
        "简约": "简约的风格不失高级感",
        "复古": "浓浓的复古味道别具韵味",
        "甜美": "甜美的气息惹人喜爱",
        "街头": "街头的潮流范十足",
    },
    "图案": {
        "条纹": "条纹的点缀拉长身形",
        "碎花": "碎花的图案浪漫温柔",
        "字母": "字母的印花彰显个性",
        "格子": "格子的元素充满学院气息",
    },
    "衣袖型": {
        "泡泡袖": "泡泡袖的造型可爱减龄",
        "喇叭袖": "喇叭袖的设计灵动飘逸",
        "落肩袖": "落肩袖的处理慵懒随性",
    },
    "衣款式": {
        "抽绳": "抽绳的细节方便调节松紧",
        "纽扣": "一排纽扣精致耐看",
        "口袋": "实用的口袋方便放置小物",
    },
    "裙长": {
        "短裙": "短裙的长度露出修长美腿",
        "长裙": "长裙的长度端庄大方",
        "连衣裙": "连衣的款式省去搭配烦恼",
    },
    "裤长": {
        "九分裤": "九分的长度露出纤细脚踝",
        "短裤": "短裤的长度清凉有活力",
        "长裤": "长裤的长度四季都适合",
    },
    "裤腰型": {
        "高腰": "高腰的设计提升腰线",
        "松紧腰": "松紧的腰头穿脱方便",
    },
}


def resolve(path: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The file that a configured path means; the sample is made on first use."""
    if not path.startswith(SCHEME):
        return Path(path).expanduser()
    name = path[len(SCHEME) :]
    if name not in FILES:
        raise ConfigError(f"{path}: the sample has no such file", hint=f"it has {', '.join(FILES)}")
    return cached(environ) / name


def cached(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the sample in the user's cache, complete.

    Its name carries a digest of this module, so that another version never finds it. It is
    made beside its place and moved there in one step: processes that race get the same files.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    root = cache_root(environ)
    folder = root / f"sample-{digest}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".sample-", dir=root))
    except OSError as error:
        raise ConfigError(
            f"cannot make the sample data in {root}: {error.strerror}",
            hint="set GLM2_CACHE to a folder that can be written",
        ) from error
    try:
        write(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except OSError:
        # Another process was first: a folder that is not empty cannot be replaced.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def cache_root(environ: Mapping[str, str]) -> Path:
    """``GLM2_CACHE``, else ``glm2`` in the user's cache folder (XDG_CACHE_HOME)."""
    if environ.get("GLM2_CACHE"):
        return Path(environ["GLM2_CACHE"]).expanduser()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "glm2"


def write(folder: Path) -> List[Path]:
    """Write all files of the sample; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    train, dev = rows(SEED)
    files = [folder / name for name in FILES]
    for file, part in zip(files, (train, dev)):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    files[2].write_bytes(_train_tokenizer(train))
    return files


def rows(seed: int) -> Tuple[List[Dict[str, str]], List[Dict[str, str]]]:
    """Rows for training and for evaluation; no content is in both."""
    draw = random.Random(seed)
    found: Dict[str, str] = {}
    while len(found) < TRAIN_ROWS + DEV_ROWS:
        kind = draw.choice(sorted(_TYPES))
        names = [name for name in _TYPES[kind] if draw.random() < 0.6][:4]
        if len(names) < 2:
            continue
        values = [(name, draw.choice(sorted(_CLAUSES[name]))) for name in names]
        content = "*".join([f"类型#{kind}", *(f"{name}#{value}" for name, value in values)])
        clauses = [_CLAUSES[name][value] for name, value in values]
        found.setdefault(content, f"{_OPENINGS[kind]}，{'，'.join(clauses)}。")
    examples = [{"content": content, "summary": text} for content, text in found.items()]
    return examples[:TRAIN_ROWS], examples[TRAIN_ROWS:]


def _train_tokenizer(examples: List[Dict[str, str]]) -> bytes:
    """A sentencepiece model with ChatGLM2's conventions: unk 0, bos 1, eos 2, byte fallback."""
    import sentencepiece

    from glm2.tokenizer import build_prompt

    texts = [build_prompt(row["content"]) + row["summary"] for row in examples]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        split_by_unicode_script=False,
        max_sentencepiece_length=3,
        num_threads=1,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
    )
    return model.getvalue()
