# SPDX-License-Identifier: Apache-2.0
"""SGLang's own test kits (`sglang.test.kits`), unmodified, against --redknot servers on the embedded model.

What runs, and what it is given in place of a hub model:

- `prefix_cache_branching_kit`: a tokenizer in which its words are one token each. Its second request must find nothing, so the map
  has no sinks: with sinks that request would reuse them, S tokens.
- `cache_hit_kit`: conversations written here, in the format of the data set that it would download.
- `radix_cache_server_kit`: its token ids go up to 31999, so two narrow layers are served with that vocabulary and dummy weights; the kit
  looks at the status only. The strict memory check is on. Its tree has 400 nodes with `--full`, else fewer.

What cannot run, and why:

- `unified_radix_cache_kit`, `kl_divergence_kit`, `eval_accuracy_kit`, `hellaswag_kit`, `lm_eval_kit`, `reasoning_kit`: data sets from
  the network, and thresholds of hub models.
- `streaming_session_kit`, `spec_decoding_kit`, `spec_server_kits`, `mmmu_vlm_kit`: features that --redknot refuses at start-up.
- `fwd_occupancy_kit`: reads a metric of GPU servers. The constrained-decoding kits need a grammar backend, which these servers do not load.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from redknot_sglang.heads import HeadMap
from tests.serving import harness
from tests.serving.conversations import check_no_leak
from tests.serving.harness import Server
from tests.serving.maps import NUM_KV_HEADS, make_map, save_map
from tests.serving.prompts import text, tokenizer

pytestmark = pytest.mark.serving

KIT_VOCABULARY = 32000
NODES = 50


def _write_word_tokenizer(folder: Path) -> Path:
    """A tokenizer of the branching kit's four words."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "this": 1, "here": 2, "that": 3, "hi": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("this|here|that|hi"), "isolated")
    words.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


def test_prefix_cache_branching_kit(tmp_path: Path) -> None:
    from sglang.test.kits.prefix_cache_branching_kit import PrefixCacheBranchingMixin

    head_map = save_map(make_map(window=16, sink=0), tmp_path)
    words = _write_word_tokenizer(tmp_path / "tokenizer")
    with harness.launch(["--redknot", f"--redknot-head-map={head_map}", f"--tokenizer-path={words}"]) as server:

        class Kit(PrefixCacheBranchingMixin):
            cache_chunk_size = 1
            base_url = server.url
            flush_cache = server.flush

        Kit.test_prefix_cache_branching()


def test_cache_hit_kit(redknot_server: Server, tmp_path: Path) -> None:
    from sglang.test.kits.cache_hit_kit import run_multiturn_cache_hit_test

    rng = random.Random(3)
    said = [{"conversations": [{"value": tokenizer().decode(text(rng))}, {"value": "Yes."}]} for _ in range(24)]
    data = tmp_path / "conversations.json"
    data.write_text(json.dumps(said))
    figures = run_multiturn_cache_hit_test(
        redknot_server.url, str(harness.MODEL), num_clients=6, num_rounds=3, dataset_path=str(data)
    )
    assert figures["overall"]["cache_hit_rate"] > 0.5


def test_radix_cache_server_kit(tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.test.kits import radix_cache_server_kit as kit

    shape = json.dumps({"vocab_size": KIT_VOCABULARY, "num_hidden_layers": 2, "hidden_size": 64})
    head_map = save_map(HeadMap.from_global_heads(2, NUM_KV_HEADS, [(1, 1), (1, 3)], 128, 4), tmp_path)
    args = ["--load-format=dummy", f"--json-model-override-args={shape}", "--max-running-requests=48"]
    if not full:
        monkeypatch.setattr(kit, "gen_radix_tree", partial(kit.gen_radix_tree, num_nodes=NODES))
    random.seed(4)
    with harness.launch(["--redknot", f"--redknot-head-map={head_map}", *args]) as server:
        kit.run_radix_attention_test(server.url)
        check_no_leak(server)
