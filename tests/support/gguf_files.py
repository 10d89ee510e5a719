import gguf
import numpy as np


def write_tiny_llama(path):
    w = gguf.GGUFWriter(path, "llama")
    L, E, H, KV, FF = 2, 64, 4, 2, 128
    w.add_name("tiny")
    w.add_context_length(256)
    w.add_embedding_length(E)
    w.add_block_count(L)
    w.add_feed_forward_length(FF)
    w.add_head_count(H)
    w.add_head_count_kv(KV)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(E // H)
    w.add_file_type(0)
    toks = (
        ["<unk>", "<s>", "</s>"]
        + [f"<0x{i:02X}>" for i in range(256)]
        + [chr(c) for c in range(97, 123)]
        + ["▁"]
    )
    types = [2, 3, 3] + [6] * 256 + [1] * 27
    w.add_vocab_size(len(toks))
    w.add_tokenizer_model("llama")
    w.add_token_list(toks)
    w.add_token_scores([0.0] * len(toks))
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    r = np.random.default_rng(0)
    V = len(toks)
    t = lambda n, *s: w.add_tensor(n, (r.standard_normal(s) * 0.1).astype(np.float32))
    t("token_embd.weight", V, E)
    w.add_tensor("output_norm.weight", np.ones(E, np.float32))
    t("output.weight", V, E)
    for i in range(L):
        b = f"blk.{i}."
        for n, s in (
            ("attn_q", (E, E)),
            ("attn_k", (E // H * KV, E)),
            ("attn_v", (E // H * KV, E)),
            ("attn_output", (E, E)),
            ("ffn_gate", (FF, E)),
            ("ffn_up", (FF, E)),
            ("ffn_down", (E, FF)),
        ):
            t(b + n + ".weight", *s)
        for n in ("attn_norm", "ffn_norm"):
            w.add_tensor(b + n + ".weight", np.ones(E, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
