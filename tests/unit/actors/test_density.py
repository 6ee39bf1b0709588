"""Density: purity, odd input, languages, the frozen files, and the order of prose and filler."""

from __future__ import annotations

import hashlib
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.actors import density, density_background
from lodestream.actors.density import BASE_BELOW, MAX_CHARS, DensityModel
from lodestream.actors.density_background import NUM_SHAPES, NUM_SLOTS, find_slots, load_background, look_up

PROSE = (
    "Every change is written to a journal before it reaches the tables, so that a server which lost its power can "
    "replay what was confirmed and drop what was not. Replaying is idempotent: doing it twice changes nothing."
)
TEXTS_IN_OTHER_LANGUAGES = {
    "Chinese": (
        "数据库在每次提交之前都会写入日志，因此即使机器突然断电，已经确认的事务也不会丢失。恢复时，系统只"
        "需要重新执行日志中尚未写入表格的那些操作。"
    ),
    "Chinese, short": "该函数返回文件的长度。",
    "Japanese": (
        "この関数は渡された文字列を段落ごとに分割し、それぞれの開始位置と終了位置を返します。空行が続く場"
        "合は一つの区切りとして扱われます。"
    ),
    "Korean": (
        "이 서비스는 요청을 받으면 먼저 캐시를 확인하고, 결과가 없을 때에만 데이터베이스에 질의한다. 따라"
        "서 응답 시간이 크게 줄어든다."
    ),
    "Arabic": (
        "تحفظ قاعدة البيانات كل تغيير في سجل منفصل قبل أن تكتبه في الجداول، ولذلك يمكن استعادة الحالة الأخيرة "
        "بعد انقطاع التيار."
    ),
    "Hebrew": ("המנוע בודק תחילה אם התוצאה כבר נמצאת במטמון, ורק אם אינה שם הוא פונה אל מסד הנתונים. כך נחסך זמן רב."),
    "Persian": "سرور هر تغییر را ابتدا در یک گزارش می‌نویسد تا پس از قطع برق هیچ تراکنش تأییدشده‌ای از دست نرود.",
    "Russian": (
        "Каждая запись сначала попадает в журнал и лишь затем в таблицу, поэтому после сбоя сервер восстанавливает "
        "все операции."
    ),
    "Russian, short": "Закрывает файл.",
    "Greek": (
        "Ο διακομιστής αποθηκεύει πρώτα κάθε αλλαγή σε ένα αρχείο, ώστε μετά από διακοπή ρεύματος να μη χαθεί "
        "καμία συναλλαγή."
    ),
    "Hindi": "सर्वर हर बदलाव को पहले एक लॉग में लिखता है, ताकि बिजली जाने के बाद भी कोई पुष्ट लेनदेन खो न जाए।",
    "Thai": ("เซิร์ฟเวอร์จะบันทึกการเปลี่ยนแปลงทุกครั้งลงในบันทึกก่อน เพื่อให้กู้คืนข้อมูลได้แม้ไฟฟ้าดับกะทันหัน"),
    "Georgian": "სერვერი ყოველ ცვლილებას ჯერ ჟურნალში წერს, რათა დენის გათიშვის შემდეგ არც ერთი ოპერაცია არ დაიკარგოს.",
    "German": (
        "Der Server schreibt jede Änderung zuerst in ein Protokoll und erst danach in die Tabelle, damit "
        "nichts verloren geht."
    ),
    "French": (
        "Le serveur écrit chaque modification dans un journal avant de toucher aux tables, si bien que rien ne se perd."
    ),
    "Turkish": (
        "Sunucu her değişikliği önce bir günlüğe yazar, böylece elektrik kesildiğinde onaylanmış hiçbir işlem "
        "kaybolmaz."
    ),
    "Vietnamese": (
        "Máy chủ ghi mọi thay đổi vào nhật ký trước khi cập nhật bảng, nhờ đó không giao dịch nào bị mất khi mất điện."
    ),
}
FILLER = {
    "licence": "THE SOFTWARE IS PROVIDED 'AS IS', WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT "
    "LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.",
    "log": "\n".join(f"2024-05-0{i} 10:0{i}:00 INFO worker-{i} request id={i * 77} took {i}3 ms" for i in range(1, 7)),
    "changelog": "1.4.2 (2023-02-01)\n- Bump version\n- Fix typo (#812)\n- Update dependencies (#815)",
    "numbers": "\n".join(f"{i * 3.7:8.2f} {i * 1.3:8.2f} {i * 9.1:8.2f}" for i in range(8)),
    "contents": "1. Introduction ........ 3\n2. Usage ............... 9\n3. Reference .......... 12",
    "badges": "[![Build](https://img.example.org/b.svg)](https://example.org/b)\n[![Docs](https://img.example.org/d.svg)]"
    "(https://example.org/d)",
    "pictures": "\U0001f600" * 30,
    "control characters": "\0" * 40,
    "encoded bytes": hashlib.sha256(b"density").hexdigest() * 4,
}
CODE = (
    'def load(path: Path) -> Table:\n    """Read a table."""\n'
    '    with path.open("rb") as file:\n        return parse(file)'
)

# fmt: off
FROZEN_THOUSANDTHS = [
    # prose, code
    957, 991,
    # filler
    26, 0, 2, 0, 3, 52, 0, 0, 0,
    # other languages
    813, 776, 839, 936, 919, 941, 927, 875, 739, 910, 931, 758, 904, 844, 838, 899, 930,
]
# fmt: on

any_text = st.text(st.characters(exclude_categories=()), max_size=60)
shaped_text = st.lists(
    st.sampled_from(
        ["the lock ", "is held. ", "12 ", "| ", "\n", "https://a.b/c ", "://", "- ", "漢字", "\U0001f600", "\ud800"]
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def model() -> DensityModel:
    return DensityModel.default()


@given(texts=st.lists(any_text | shaped_text, max_size=12))
def test_a_score_depends_on_its_own_text_only(texts: list[str]) -> None:
    model = DensityModel.default()
    together = model.score(texts)
    alone = [model.score([text])[0] for text in texts]
    assert together.dtype == np.float32
    assert together.tobytes() == np.array(alone, np.float32).tobytes()


@given(texts=st.lists(any_text | shaped_text, max_size=6))
def test_scores_are_thousandths_between_0_and_1(texts: list[str]) -> None:
    scores = DensityModel.default().score(texts)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores == np.round(scores.astype(np.float64), 3).astype(np.float32)).all()


def test_batches_do_not_show(model: DensityModel) -> None:
    texts = [PROSE * (i % 5) + FILLER["log"][: i * 7] + f" {i}" for i in range(700)]
    assert sum(map(len, texts)) > 2 * density._BATCH_CHARS
    expected = np.concatenate([model.score([text]) for text in texts])
    assert model.score(texts).tobytes() == expected.tobytes()


@pytest.mark.parametrize("language", TEXTS_IN_OTHER_LANGUAGES)
def test_prose_in_other_languages_is_dense(model: DensityModel, language: str) -> None:
    assert model.score([TEXTS_IN_OTHER_LANGUAGES[language]])[0] > 0.5


@pytest.mark.parametrize("name", FILLER)
def test_filler_is_below_the_default_threshold(model: DensityModel, name: str) -> None:
    assert model.score([FILLER[name]])[0] < BASE_BELOW


@pytest.mark.parametrize("text", [PROSE, CODE, "How does it work?", "Closes the file."])
def test_prose_code_and_questions_are_dense(model: DensityModel, text: str) -> None:
    assert model.score([text])[0] > 0.5


@pytest.mark.parametrize("text", ["Installation", "## Usage", "设计", "API"])
def test_headings_are_not_filler(model: DensityModel, text: str) -> None:
    assert model.score([text])[0] > BASE_BELOW


def test_addresses_do_not_drown_prose(model: DensityModel) -> None:
    link = "https://example.org/a/very/long/path/with-many-parts/1234567890/index.html?query=ab12&page=3#part-4"
    plain, linked = model.score([PROSE, PROSE.replace("a journal", f"[a journal]({link})")])
    assert linked > 0.9 * plain


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\n"])
def test_text_without_ink_scores_0(model: DensityModel, text: str) -> None:
    assert model.score([text])[0] == 0


def test_no_texts_no_scores(model: DensityModel) -> None:
    assert model.score([]).shape == (0,)


def test_the_beginning_of_a_very_long_text_decides(model: DensityModel) -> None:
    head = (PROSE + " ") * (MAX_CHARS // len(PROSE) + 1)
    assert model.score([head])[0] == model.score([head + FILLER["log"] * 10_000])[0]


def test_every_character_has_a_class() -> None:
    classes = density_background.CLASSES
    assert len(classes) == density_background.NUM_CODES
    assert classes.min() > density_background.PAD


def test_identity_belongs_to_tables_and_weights(model: DensityModel) -> None:
    other = density_background.Background(
        shapes=model.background.shapes, words=model.background.words, weights=model.background.weights, digest="other"
    )
    assert DensityModel(other).identity != model.identity
    assert int(model.identity, 16) >= 0


def test_frozen_scores(model: DensityModel) -> None:
    """A change of any of these changes stored features: raise CODE_VERSION, or rebuild the background, on purpose."""
    texts = [PROSE, CODE, *FILLER.values(), *TEXTS_IN_OTHER_LANGUAGES.values()]
    thousandths = np.rint(model.score(texts).astype(np.float64) * 1000).astype(int).tolist()
    assert thousandths == FROZEN_THOUSANDTHS


def test_model_pickles_to_the_same_scores(model: DensityModel) -> None:
    copy = pickle.loads(pickle.dumps(model))
    assert copy.identity == model.identity
    assert copy.score([PROSE, CODE]).tobytes() == model.score([PROSE, CODE]).tobytes()


def test_threads_share_a_model(model: DensityModel) -> None:
    texts = [PROSE[i:] + FILLER["numbers"][:i] for i in range(150)]
    expected = model.score(texts).tobytes()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(model.score(texts).tobytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_background_is_read_only_and_small() -> None:
    background = load_background()
    assert background.shapes.shape == (NUM_SHAPES,)
    assert background.words.shape == (NUM_SLOTS,)
    assert set(background.weights) == {*density.SIGNALS, "bias"}
    with pytest.raises(ValueError, match="read-only"):
        background.words[0] = 1


def test_look_up_finds_what_was_stored() -> None:
    hashes = np.array([5, 123_456_789, 0xFFFFFFFF], np.uint32)
    slots, tags = find_slots(hashes)
    values = np.array([-80, 0, 7], np.int8)
    words = np.zeros(NUM_SLOTS, np.uint16)
    words[slots] = (tags << np.uint16(8)) | values.view(np.uint8)
    known, found = look_up(words, hashes)
    assert known.all()
    assert found.tolist() == [-80, 0, 7]
    known, found = look_up(words, hashes + np.uint32(1))
    assert not known.any()
    assert found.tolist() == [0, 0, 0]
