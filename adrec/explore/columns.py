"""Which column is which: by its name first, then checked against its values; and by its values where no name fits."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from adrec.errors import DataError
from adrec.explore.look import Column, Table

# canonical -> names it goes by, the likeliest first. Compared in lower case with everything but letters and digits dropped.
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "uid", "customer_id", "member_id", "visitor_id", "viewer_id", "device_id", "person_id",
                "account_id", "cookie", "用户id", "用户"),
    "ad_id": ("ad_id", "advertisement_id", "advert_id", "creative_id", "item_id", "iid", "news_id", "nid", "movie_id",
              "product_id", "article_id", "video_id", "sku", "asin", "goods_id", "ad", "item",
              "广告id", "广告", "商品id", "物品id"),
    "shown_at": ("shown_at", "timestamp", "time", "ts", "datetime", "date_time", "impression_time", "event_time", "created_at",
                 "served_at", "request_time", "unix_time", "unix_timestamp", "time_stamp", "date",
                 "展示时间", "曝光时间", "时间"),
    "click": ("click", "clicked", "is_click", "is_clicked", "clk", "label", "target", "y", "click_label", "点击", "是否点击"),
    "title": ("title", "headline", "ad_title", "item_title", "movie_title", "name", "item_name", "product_name", "subject",
              "标题", "名称", "商品名"),
    "description": ("description", "desc", "body", "ad_text", "abstract", "summary", "content", "plot", "copy", "text",
                    "details", "描述", "简介", "正文"),
    "category": ("category", "cat", "category_name", "cate", "cate_id", "category_id", "genre", "genres", "topic", "vertical",
                 "section", "class", "类别", "分类", "类目"),
    "advertiser_id": ("advertiser_id", "advertiser", "brand", "brand_id", "seller_id", "merchant_id", "publisher", "customer",
                      "广告主", "品牌"),
    "starts_at": ("starts_at", "start_time", "start_date", "start", "valid_from", "开始时间"),
    "ends_at": ("ends_at", "end_time", "end_date", "end", "valid_to", "expires_at", "结束时间"),
    "bid": ("bid", "bid_price", "max_bid", "cpc", "出价"),
    "budget": ("budget", "daily_budget", "total_budget", "预算"),
    "request_id": ("request_id", "impression_id", "imp_id", "search_id", "query_id", "auction_id", "page_view_id",
                   "pageview_id"),
    "position": ("position", "pos", "slot", "rank", "ad_position", "slot_id", "位置"),
    "propensity": ("propensity", "propensity_score", "pscore", "action_prob", "logging_probability"),
    "conversion": ("conversion", "converted", "is_conversion", "cvr_label", "purchase", "purchased", "is_purchase", "buy",
                   "转化"),
    "rating": ("rating", "stars", "score", "评分"),
    "dwell_seconds": ("dwell_seconds", "dwell_time", "dwell", "read_time", "watch_seconds", "停留时间"),
    "scenario": ("scenario", "channel", "placement", "surface", "scene", "渠道", "场景"),
    "query": ("query", "search_query", "search_term", "keyword", "查询", "搜索词"),
    "history": ("history", "click_history", "clicked_items", "browsed", "历史"),
    "interests": ("interests", "interest", "user_interests", "likes", "preferences", "兴趣"),
}  # fmt: skip
# What happens after the click may not be an input; nor may the sample's oracle.
_AFTERWARDS = re.compile(r"convert|conversion|purchase|revenue|order|payment|dwell|watch|after|true_?prob|click|clk|label")
_ALONE = {"ads": ("title", "description", "category", "advertiser_id", "starts_at", "ends_at", "bid", "budget"),
          "users": ("interests",)}  # fmt: skip
_LOG = ("shown_at", "request_id", "click", "position", "propensity", "conversion", "rating", "dwell_seconds", "scenario",
        "query", "history")  # fmt: skip
_MOST_VALUES = 1000


@dataclass(frozen=True)
class Finding:
    """One decision: `column` of `table` is `meaning`, because `why`."""

    table: str
    column: str
    meaning: str
    why: str


@dataclass
class Guess:
    """The tables by role, what their columns are, and what was noticed."""

    tables: dict[str, Table]
    names: dict[str, dict[str, str]]
    """role -> canonical name -> column."""
    features: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """role -> numeric, categorical or lists -> columns."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def column(self, role: str, canonical: str) -> Column | None:
        """The column that plays `canonical` in table `role`."""
        found = self.names.get(role, {}).get(canonical)
        return self.tables[role].columns[found] if found is not None else None


def guess(tables: list[Table]) -> Guess:
    """Say which table is the log, which the ads and which the users, and which column is which. Raises DataError."""
    log = _the_log(tables)
    found = Guess({"impressions": log}, {})
    others = [table for table in tables if table is not log]
    for role, key in (("ads", "ad_id"), ("users", "user_id")):
        table = next((table for table in others if _is_of(table, key)), None)
        if table is not None:
            others.remove(table)
            found.tables[role] = table
    found.notes += [f"{table.label} is none of impressions, ads and users: left out." for table in others]
    for role, table in found.tables.items():
        found.names[role] = {}
        for canonical in _wanted(found, role):
            column = _by_name(table, canonical, taken=set(found.names[role].values()))
            if column is not None:
                _take(found, role, canonical, column, f"called {column.name!r}; {_values(column)}")
    _by_values(found)
    _refuse_without_needs(found)
    for role in found.tables:
        _declare_features(found, role)
    return found


def _the_log(tables: list[Table]) -> Table:
    """The table with a user and an ad in each row; the longest of several."""
    logs = [table for table in tables if _by_name(table, "user_id") is not None and _by_name(table, "ad_id") is not None]
    if not logs:
        seen = "; ".join(f"{table.label}: {', '.join(list(table.columns)[:8])}" for table in tables)
        raise DataError(
            f"no table with a user and an ad in each row was found ({seen}). Rename their columns to user_id and ad_id."
        )
    return max(logs, key=lambda table: table.rows)


def _is_of(table: Table, key: str) -> bool:
    """A table of ads (or users) names one a row, each once."""
    column = _by_name(table, key)
    other = _by_name(table, "user_id" if key == "ad_id" else "ad_id")
    return column is not None and column.distinct == table.rows and (other is None or key == "ad_id")


def _wanted(found: Guess, role: str) -> Iterator[str]:
    """Canonical names to look for in a table: those of its role, and of roles that have no table of their own."""
    if role == "impressions":
        yield from ("user_id", "ad_id", *_LOG)
        yield from (name for other, names in _ALONE.items() if other not in found.tables for name in names)
    else:
        yield "ad_id" if role == "ads" else "user_id"
        yield from _ALONE[role]


def _by_name(table: Table, canonical: str, taken: set[str] | None = None) -> Column | None:
    """The column with the likeliest name whose values fit."""
    plain = {_plain(column.name): column for column in table.columns.values() if column.name not in (taken or ())}
    for wanted in NAMES[canonical]:
        column = plain.get(_plain(wanted))
        if column is not None and column.filled and _fits(canonical, column):
            return column
    return None


def _fits(canonical: str, column: Column) -> bool:
    """Whether the values allow the meaning that the name suggests."""
    if canonical in {"click", "conversion"}:
        return column.is_flag
    if canonical in {"shown_at", "starts_at", "ends_at"}:
        return column.time is not None
    if canonical in {"bid", "budget", "rating", "dwell_seconds"}:
        return column.is_number and (column.low or 0) >= 0
    if canonical == "propensity":
        return column.is_number and column.low is not None and column.low > 0 and (column.high or 2) <= 1
    if canonical == "position":
        return column.is_number and column.whole and (column.low or 0) >= 0
    if canonical in {"history", "interests"}:
        return column.separator is not None or (canonical == "interests" and column.stored == "VARCHAR")
    if canonical in {"title", "description", "query"}:
        return column.separator != "" and not column.is_number and column.time is None
    return column.separator != "" or canonical == "category"


def _by_values(found: Guess) -> None:
    """Where no name fitted: the only column of times, the only 0/1 column, the longest text."""
    log, names = found.tables["impressions"], found.names["impressions"]
    free = [column for column in log.columns.values() if column.name not in names.values()]
    if "shown_at" not in names:
        times = [column for column in free if column.time is not None]
        if times:
            _take(found, "impressions", "shown_at", times[0], f"its values are times; {_values(times[0])}")
    if "click" not in names:
        flags = [column for column in free if column.is_flag and column.distinct == 2]
        if len(flags) == 1:
            _take(found, "impressions", "click", flags[0], "the only column of 0 and 1")
    role = "ads" if "ads" in found.tables else "impressions"
    if "title" not in found.names[role]:
        taken = set(found.names[role].values())
        free = [column for column in found.tables[role].columns.values() if column.name not in taken]
        texts = [column for column in free if column.words >= 2 and not column.is_list and column.time is None]
        if texts:
            longest = max(texts, key=lambda column: column.words)
            _take(found, role, "title", longest, f"the longest text, {longest.words:.0f} words on average")


def _refuse_without_needs(found: Guess) -> None:
    log = found.tables["impressions"]
    if "click" not in found.names["impressions"]:
        hint = " There are ratings: add a column that is 1 for good ones." if "rating" in found.names["impressions"] else ""
        raise DataError(
            f"{log.files[0]}: no column says whether the ad was clicked (0 or 1); columns: {', '.join(log.columns)}."
            f"{hint} Rename it to click."
        )
    role = "ads" if "ads" in found.tables else "impressions"
    if "title" not in found.names[role]:
        found.notes.append("no text says what an ad is about: its id stands for the title, and no language model is used.")
    if "shown_at" not in found.names["impressions"]:
        found.notes.append("no column is a time: the split is at random, and there are no histories and no counters.")


def _declare_features(found: Guess, role: str) -> None:
    """Numbers and categories that are left become features; ids, free text and what happens later do not."""
    table, named = found.tables[role], found.names[role]
    kinds: dict[str, list[str]] = {"numeric": [], "categorical": [], "lists": []}
    for column in table.columns.values():
        if column.name in named.values():
            continue
        meaning, why = _feature(column, table)
        found.findings.append(Finding(role, column.name, meaning, why))
        kind = {"number": "numeric", "category": "categorical", "list": "lists"}.get(meaning)
        if kind is not None:
            kinds[kind].append(column.name)
    for canonical in ("bid", "category", "advertiser_id"):
        column_of = found.column(role, canonical)
        if column_of is not None:
            kinds["numeric" if canonical == "bid" else "categorical"].append(canonical)
    for canonical in ("scenario", "position"):
        if canonical in named:
            kinds["categorical"].append(canonical)
    if "interests" in named:
        kinds["lists"].append("interests")
    found.features[role] = kinds


def _feature(column: Column, table: Table) -> tuple[str, str]:
    """number, category, list or not used, and why."""
    if _AFTERWARDS.search(column.name.lower()):
        return "not used", "its name says that it is known only after the click"
    if not column.filled:
        return "not used", "empty"
    if column.distinct == 1:
        return "not used", f"always {column.example!r}"
    if column.is_list:
        return "list", f"lists such as {column.example!r}"
    if column.time is not None:
        return "not used", "a second time"
    looks_like_id = _plain(column.name).endswith(("id", "key", "hash")) or column.distinct > 0.9 * column.filled > 50
    if column.is_number and not (column.whole and looks_like_id):
        return "number", _values(column)
    if column.distinct <= min(_MOST_VALUES, max(20, table.rows // 5)):
        return "category", f"{column.distinct:,} values, such as {column.example!r}"
    return "not used", f"{column.distinct:,} different values: an id or free text"


def _take(found: Guess, role: str, canonical: str, column: Column, why: str) -> None:
    found.names[role][canonical] = column.name
    found.findings.append(Finding(role, column.name, canonical, why))


def _values(column: Column) -> str:
    if column.time is not None:
        how = column.time.get("time_unit") or column.time.get("time_format")
        since = " since 1970" if "time_unit" in column.time else ""
        return f"times ({how}{since})" if how else "times"
    if column.is_flag:
        return "0 or 1"
    if column.is_number:
        return f"numbers from {column.low:g} to {column.high:g}"
    return f"such as {column.example!r}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
