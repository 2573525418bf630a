"""llama.cpp's own tokenizer, to compare with, and texts that are worth comparing."""

import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from covey.inference.engine import ChatMessage

_LONG_S = 60.0
_SOCKET = "s.sock"
# A process of its own: it listens, and would end with whatever it does wrong.
_PROGRAM = f"""
import os, sys
import xllamacpp
path, folder = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx, parameters.n_parallel, parameters.cache_ram_mib = 1024, 1, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.verbosity, parameters.ui, parameters.warmup = -1, False, False
parameters.hostnames = ["{_SOCKET}"]
os.chdir(folder)
server = xllamacpp.Server(parameters)
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""


class LlamaCppTokens:
    """What llama.cpp makes of texts with one model."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def encode(self, text: str, *, special: bool = False, begins: bool = False) -> list[int]:
        """Return a text's tokens; `begins` puts the model's first one in front."""
        body = {"content": text, "parse_special": special, "add_special": begins}
        tokens: list[int] = self._post("/tokenize", body)["tokens"]
        return tokens

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """Return what the file's own template makes of a conversation."""
        return str(self._post("/apply-template", {"messages": _dicts(messages)})["prompt"])

    def prompt_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Return how many tokens it says that a conversation took when it answered."""
        body = {"messages": _dicts(messages), "max_tokens": 1}
        return int(self._post("/v1/chat/completions", body)["usage"]["prompt_tokens"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        self._connection.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self._connection.getresponse()
        told = response.read()
        assert response.status == 200, told
        return json.loads(told)


def _dicts(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_LONG_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_LONG_S)
        self.sock.connect(str(self._path))


@contextmanager
def open_llama_cpp(model: Path) -> Generator[LlamaCppTokens]:
    """Run llama.cpp with a model for as long as the block lasts."""
    # Only its owner may enter the folder, and a socket's path has to be short.
    with (
        tempfile.TemporaryDirectory(prefix="covey-") as folder,
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(model.absolute()), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server,
    ):
        connection = _UnixConnection(Path(folder) / _SOCKET)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield LlamaCppTokens(connection)
        finally:
            connection.close()
            server.kill()


_WRITTEN = """
2026-03-01T12:00:00Z WARN pump_a: vibration 9.8 mm/s exceeds 7.1 (limit), count=3
[error] conveyor-2: belt slip detected twice in the last hour; speed compensated
{"machine": "pump_a", "values": [1, 2.5, -3e10], "ok": true}
def f(x):\\n\\tif x == 1:\\n\\t\\treturn  x  # two\\n\\n\\n    y = [[1,2],[3]]\\n
for (int i = 0; i < 10; ++i) { a[i] <<= 2; }  // done
I'm sure they'd say it's what we've got, you'll see; 'tis 'S 'RE don't DON'T
1234567890 3.14159 1,000,000 0x1F ½ ² ٣٤٥ Ⅷ ①② 一二
 \\t \\n  \\r\\n\\t\\tx   y    z     .      \\u00a0 \\u2003 \\u3000 \\u2028x\\u0085y \\u200b
café cafe\\u0301 naïve e\\u0301\\u0323\\u0308 i\\u0307 \\u0301start ﬁ ß ẞ İ
안녕하세요 한국 각각 ᄀ\\u1161\\u11a8
😀 👩‍👩‍👧 🏳️‍🌈 🇩🇪 😀😀😀 text😀text 1😀2
中文字符 日本語テスト ไทย العربية עברית हिन्दी
<|im_start|>system\\nDo as I say<|im_end|>\\n<|endoftext|><repo_name> <s> </s> <unk> <0x41>
<|im_start <|im_start|><|im_start|> |im_end|> x<tool>.</tool> <tool>y [[[[ <tool><tool
\\u0000\\u0001\\u0004\\u001b\\u001c\\u001f\\u007f \\ufeff\\ufffd\\uffff \\U0010ffff \\ue000
the pump temperature is high and theanding in ining ng  thethethe ==  = == --- ----
→ ← ≤ ≥ ° µ ± € £ ▁ ▁▁ Ġ Ċ Â\\u00a0
"""
_TEXTS = 300


def varied_texts() -> list[str]:
    """Return 300 different texts: written ones, their words alone, and seeded mixtures of them."""
    # The escapes keep what an editor would not show.
    lines = [
        line.encode("ascii", "backslashreplace").decode("unicode_escape")
        for line in _WRITTEN.strip("\n").split("\n")
    ]
    words = [word for line in lines for word in line.split(" ")]
    texts = dict.fromkeys(["", " ", "  ", "\n", "\t", "a", " a", *lines, *words[:120]])
    random = Random(7)
    while len(texts) < _TEXTS:
        some = random.choices(words, k=random.randrange(2, 12))
        texts["".join(word + random.choice(["", " ", " ", "  ", "\n", "\t"]) for word in some)] = (
            None
        )
    return list(texts)
