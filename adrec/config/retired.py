"""Keys that configs of an earlier adrec may hold and no config has any more: what took their place, named in the error.

A stored config (in a bundle or a prepared folder) is read without them where nothing that is read depends on them.
"""

from typing import Any, NamedTuple


class Retired(NamedTuple):
    """A key that is gone."""

    successor: str
    """What does its work now: whole sentences, for the user who still sets it."""
    went_by: Any = ...
    """The only value with which a stored config is still read; `...` is any: the key mattered while its file was made."""


def decided(says: str, went_by: Any = ...) -> Retired:
    """A key whose value nobody changed: adrec goes by one, which `says` tells."""
    return Retired(f"adrec decides this itself now: {says}. Take it out.", went_by)


def not_gone(interaction: Any) -> Any:
    """Refuse, by name, values of `model.interaction` that an earlier adrec took. Raises ValueError."""
    if interaction in ("fm", "deepfm"):
        raise ValueError(f"{interaction} is gone, since mlp and dcn read the same products and rank no worse. Take dcn")
    return interaction


RETIRED: dict[str, dict[str, Retired]] = {
    "TablesSource": {
        "ad_columns": Retired("Nothing ever read it here: set `ad_columns` at the top of the config."),
        "user_columns": Retired("Nothing ever read it here: set `user_columns` at the top of the config."),
    },
    "AlarmSettings": {
        "correction": decided("p-values are always corrected by Holm's method, which bounds the chance of any false alarm"),
        "level": decided("a difference counts below an adjusted p-value of 0.05"),
    },
    "BootstrapSettings": {
        "slice_replicates": decided("slices take 300 draws, or `replicates` where that is less"),
        "level": decided("intervals hold 95 %"),
    },
    "SliceSettings": {
        "most_values": decided("the 20 commonest values get a slice"),
        "least_positives": decided("slices with fewer than 20 clicks, or non-clicks, get no verdict"),
        "quantiles": decided("a column of numbers is cut into quarters"),
    },
    "OffPolicySettings": {
        "least_effective_share": decided("what counts is the weight itself: 30 users' worth in each slot"),
        "least_effective": decided("adrec refuses where a slot's rows weigh less than 30 users"),
        "least_supported": decided("adrec refuses where the logs reach less than 95 % of what the policy shows"),
    },
    "EvaluateConfig": {
        "bins": decided("the reliability diagram has 15 bins"),
        "examples": decided("the report shows four of the best and four of the worst requests"),
    },
    "TrainingConfig": {
        "betas": decided("AdamW's moments decay by 0.9 and 0.999"),
        "clip_norm": decided("gradients are clipped at norm 1"),
    },
    "TextEncoderSettings": {
        "lora_alpha": decided("the scale of LoRA updates is twice their rank"),
    },
    "ModelSettings": {
        "cross_rank": decided("the cross matrices of dcn have rank 32", 32),
        "identity_dropout": decided("a fifth of the own vectors is replaced in training"),
    },
    "LossSettings": {
        "list_penalty": decided("the ridge on weights of list values is 0.03"),
    },
    "FinetuneTraining": {
        "valid_rows": decided("at most the first 500,000 validation rows are looked at"),
        "shuffle_rows": decided("524,288 rows are shuffled together when streaming"),
    },
    "BaselinesConfig": {
        "content_weights": decided("the content score learns its weights"),
        "neighbours": decided("user-based collaborative filtering asks 200 users"),
        "factors": decided("matrix factorisation has 32 factors"),
        "text_penalty": decided("the conditional logit's text weights have an L2 penalty of 0.01"),
        "mlp_epochs": decided("the classic MLP passes ten times over the rows"),
    },
    "HybridConfig": {
        "folds": decided("the hybrid is cross-fitted on five parts of the validation requests"),
    },
    "AutoencoderModel": {
        "hidden": decided("the layers between are 128 wide"),
        "batch_ads": decided("a step takes 128 ads"),
        "neighbour_weight": decided("the cosines between ads weigh 100 times a reconstruction error"),
    },
    "DaeObjective": {
        "delete_rate": decided("0.6 of the tokens are deleted (Wang et al., 2021)"),
        "decoder_layers": decided("the decoder has one layer"),
        "batch_texts": decided("a batch has 32 texts"),
    },
    "NspObjective": {
        "batch_texts": decided("a batch has 32 pairs"),
    },
    "ContrastiveObjective": {
        "log_q": decided("popular ads among the negatives are always corrected for (logQ)"),
    },
    "Batches": {
        "limit_texts": decided("the whole corpus is read"),
        "pack_tokens": decided("a packed row holds 128 tokens, or `max_tokens` where that is more"),
    },
    "DistilTerms": {
        "temperature": decided("soft targets are taken at temperature 2"),
    },
    "ClickTerms": {
        "temperature": decided("soft targets are taken at temperature 2"),
    },
    "DistillConfig": {
        "judge_rows": decided("teacher and student are compared on at most 100,000 validation rows"),
    },
    "TuneConfig": {
        "startup_trials": decided("five random trials come before tpe begins"),
        "warmup_evaluations": decided("the median pruner looks from the second evaluation on"),
    },
    "ExplainConfig": {
        "onnx": Retired("Only `score` reads it. Take it out."),
        "onnx_int8": Retired("Only `score` reads it. Take it out."),
        "batch_rows": Retired("Only `score` reads it. Take it out."),
        "threads": Retired("Only `score` reads it. Take it out."),
        "tolerance": decided("contributions miss at most 0.001 of the log-odds"),
        "orders": decided("categories are put in place in four pairs of random orders"),
        "counterfactuals": decided("the five changes that matter most are shown a row"),
    },
    "ExportConfig": {
        "onnx": Retired("Only `score` reads it. Take it out."),
        "onnx_int8": Retired("Only `score` reads it. Take it out."),
        "batch_rows": Retired("Only `score` reads it. Take it out."),
        "threads": Retired("Only `score` reads it. Take it out."),
        "parity_rows": decided("torch and onnxruntime are compared on 2,000 rows"),
    },
    "Retrieval": {
        "exact_up_to": decided("catalogues of up to 2 million ads are searched exactly; `method` takes another way"),
        "hnsw_up_to": decided("catalogues of up to 5 million ads get an HNSW graph; `method` takes another way"),
        "recall_target": decided("approximate search works until it finds 98 % of the exact result"),
        "recall_sample": decided("approximate search is compared with exact on 100 requests"),
    },
    "Exploration": {
        "prior_impressions": decided("the model's own score is worth 200 impressions"),
        "scale": decided("the deviation of the logit is taken as it is"),
    },
    "RankConfig": {
        "request_block": decided("requests are ranked 256 at a time"),
        "part_requests": decided("a finished part holds 4,096 requests"),
    },
    "NumericFeature": {
        "quantiles": decided("`quantile` and `normal` keep 1,000 landmarks"),
    },
    "CategoricalFeature": {
        "max_values": decided("every value seen `min_count` times is kept"),
    },
    "CalendarFeature": {
        "parts": decided("hour, weekday, weekend and their cycles are all read", ["hour", "weekday", "weekend", "cycle"]),
    },
    "TextSettings": {
        "query_template": decided("the text of a query is the query", "{query}"),
        "lowercase": Retired("`tokenizer.lowercase` decides about case."),
        "max_characters": decided("texts are cut after 4,000 characters"),
    },
    "TokenizerSettings": {
        "min_frequency": decided("pieces seen once are not learnt"),
        "special_tokens": decided("[PAD] [UNK] [CLS] [SEP] [MASK] are all there are"),
        "max_tokens": decided("the tokenizer records 512 tokens; encoders set their own limit"),
    },
    "PrivacySettings": {
        "key_variable": Retired("The key is in the environment variable ADREC_PRIVACY_KEY, or in `key_file`."),
    },
    "PreprocessConfig": {
        "rows_per_shard": decided("a file of impressions holds about a million rows"),
    },
    "SampleConfig": {
        "out": Retired("It is called `output` here too."),
        "rows_per_file": decided("a file of impressions holds a million rows"),
    },
    "ServeConfig": {
        "api_key_variable": Retired("The key is in the environment variable ADREC_API_KEY."),
    },
    "StageConfig": {
        "seed": Retired("This command draws nothing at random. Take it out."),
        "device": Retired("This command runs no network on a device of your choice. Take it out."),
    },
}
"""Class of the config section -> key -> what became of it. A class stands for those that extend it."""


def retired(section: type, key: str) -> Retired | None:
    """What became of `key` of this section; None where it has never been one."""
    return next((RETIRED[base.__name__][key] for base in section.__mro__ if key in RETIRED.get(base.__name__, {})), None)
