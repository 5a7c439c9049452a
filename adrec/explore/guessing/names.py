"""What names say: canonical columns by the names that vendors give them, and what else a word in a name hints at.

A name is evidence, never proof: `columns` believes it where the values allow it.
"""

import re


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# canonical -> names it goes by, the likeliest first. Compared in lower case with everything but letters and digits dropped.
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": words(
        "user_id user uid userid customer_id member_id visitor_id viewer_id person_id account_id client_id "
        "reviewer_id user_pseudo_id full_visitor_id ipinyou_id uuid guid cookie cookie_id device_id idfa gaid 用户id "
        "用户 用户编号 会员id 会员编号 客户id 设备id"
    ),
    "ad_id": words(
        "ad_id ads_id advertisement_id advert_id creative_id ad_creative_id adgroup_id ad_group_id banner_id item_id "
        "target_item_id iid news_id nid movie_id product_id article_id video_id sku sku_id asin goods_id content_id "
        "post_id offer_id ad advertisement creative item product article movie video advert ad_set_id ad_name ad_set_name "
        "ad_group ad_group_name 广告id 广告 广告编号 创意id 广告创意id 商品id 商品编号 物品id 素材id 新闻id 视频id"
    ),
    "shown_at": words(
        "shown_at timestamp time ts datetime date_time impression_time impression_timestamp event_time "
        "event_timestamp show_time served_at request_time log_time created_at unix_time unix_timestamp "
        "unix_review_time time_stamp click_time date day hour event_date 日期 展示时间 曝光时间 时间 请求时间"
    ),
    "click": words(
        "click clicked is_click is_clicked has_clicked was_clicked clk click_label label_click ad_click clicked_on_ad "
        "label target y ctr_label is_attributed response responded outcome 点击 是否点击 是否点击广告 标签"
    ),
    "title": words(
        "title headline ad_title ad_headline ad_topic_line item_title movie_title news_title ad_name creative_name "
        "item_name product_name product_title name subject ad_copy ad_text caption 标题 广告标题 名称 商品名 商品名称 "
        "商品标题 广告名称 新闻标题 广告文案 文案"
    ),
    "description": words(
        "description desc body ad_text ad_body abstract summary content plot copy text details 描述 简介 正文 广告描述 摘要"
    ),
    "category": words(
        "category cat category_name cate cate_id category_id category_ids category_code ad_category item_category "
        "product_category genre genres topic vertical section class categories 类别 分类 类目 类目id 品类 广告类别"
    ),
    "advertiser_id": words(
        "advertiser_id advertiser brand brand_id seller_id merchant_id publisher customer advertiser_name brand_name "
        "shop_id store_id 广告主 广告主id 品牌 品牌id 商家id 店铺id"
    ),
    "starts_at": words("starts_at start_time start_date start valid_from 开始时间 开始日期 上线时间"),
    "ends_at": words("ends_at end_time end_date end valid_to expires_at 结束时间 结束日期 下线时间"),
    "bid": words("bid bid_price max_bid cpc cpc_bid max_cpc 出价"),
    "budget": words("budget daily_budget total_budget 预算 日预算"),
    "request_id": words(
        "request_id req_id impression_id imp_id search_id query_id auction_id bid_id display_id page_view_id "
        "pageview_id impression_group_id trace_id log_id 请求id 曝光id"
    ),
    "position": words(
        "position pos slot rank ad_position slot_id show_pos banner_pos display_position click_pos 位置 展示位置 排名"
    ),
    "propensity": words("propensity propensity_score pscore action_prob logging_probability"),
    "propensity_given_above": words("propensity_given_above"),
    "conversion": words(
        "conversion converted is_conversion cvr_label conversion_label purchase purchased is_purchase buy "
        "approved_conversion 转化 是否转化 是否购买"
    ),
    "rating": words("rating ratings stars star_rating overall score 评分 打分"),
    "dwell_seconds": words("dwell_seconds dwell_time dwell read_time watch_seconds 停留时间 停留时长"),
    "scenario": words("scenario channel placement surface scene 渠道 场景 广告位 版位"),
    "query": words("query search_query search_term search_terms search_keyword keyword 查询 搜索词 关键词"),
    "history": words(
        "history click_history clicked_items click_sequence click_seq browsed browsing_history hist_items "
        "item_history history_item_id user_items 历史 点击历史 点击序列"
    ),
    "interests": words("interests interest user_interests likes preferences user_tags 兴趣 兴趣标签"),
    "impressions": words(
        "impressions impr imps imp impression_count num_impressions total_impressions views shows displays exposures "
        "展示数 展示量 展示次数 展现量 曝光数 曝光量 曝光次数"
    ),
    "clicks": words(
        "clicks link_clicks click_count num_clicks total_clicks clks clicks_all unique_clicks 点击数 点击量 点击次数"
    ),
    "conversions": words(
        "conversions conv convs approved_conversion approved_conversions total_conversion total_conversions all_conv "
        "results purchases orders installs 转化数 转化量"
    ),
    "spend": words(
        "spend spent cost costs amount_spent amount_spent_usd amount_spent_eur total_cost media_cost 花费 消耗 成本"
    ),
    "clicked_at": words("clicked_at click_time click_timestamp click_ts clicked_time 点击时间"),
    "converted_at": words(
        "converted_at conversion_time conversion_timestamp attributed_time install_time purchase_time order_time "
        "conversion_at 转化时间"
    ),
}

# For names that no list can hold: the last words of the name, in snake case. Tried after NAMES.
_ENDINGS: dict[str, str] = {
    "user_id": r"(user|customer|member|visitor|viewer|person|people|client|subscriber|account|cookie|profile|buyer|reader"
    r"|shopper|reviewer|player|listener|consumer|household|uid|uuid|guid)(_(pseudo_)?(id|key|hash|no|number|code))?",
    "ad_id": r"(ad|ads|advert|advertisement|creative|banner|adgroup|ad_group|item|product|article|news|movie|video|song|track"
    r"|book|game|sku|goods|offer|listing|post|document|doc|story|restaurant|business|hotel|poi|recipe|anime|coupon|promotion|campaign)"
    r"(_(id|key|no|number|code|pk|uid))",
    "shown_at": r"(time|timestamp|date|datetime|ts|day|hour|moment)(_(utc|local|ms|us|millis|micros|seconds))?",
    "click": r"(click|clicked|clk|tapped|clicked_(on_)?(the_)?(ad|banner|link)|click_?(flag|label|through)|purchased|converted"
    r"|subscribed|responded|attributed|bought|installed)",
    "title": r"(title|headline|topic_line|caption|slogan)",
    "rating": r"(rating|stars)",
}
_STANDS_FOR_AN_AD = ("campaign_id", "campaign", "campaign_name", "xyz_campaign_id", "活动id", "计划id", "推广计划")
"""Where no finer column names the ad."""

AFTERWARDS = re.compile(
    r"convert|conversion|purchase|revenue|order|payment|dwell|watch_?(time|sec|ratio)|after|true_?prob|label|attributed|roas|install"
    r"|checkout|transaction|conv_|_conv|paying_?price|win_?price|点击|转化|成交|购买|收入|停留|(^|_)(cpc|ctr|cvr|cpa)(_|$)|review_?text"
    r"|(^|_)(non_?)?(click|clk)(s|ed)?(_|$)"
)
"""What happens after the ad was shown may not be an input; nor may the sample's oracle."""
EARLIER = re.compile(r"last|prev|past|before|prior|histor|earlier|lag|since|avg|mean|seq|_so_far|total_before|历史|以往|上次")
"""... but for what is said to have happened earlier."""
SPEND = re.compile(r"(^|_)(spend|spent|cost|costs|charge|charged|花费|消耗)($|_)")

_OF_ADS = frozenset(
    words(
        "ad ads adgroup campaign creative brand advertiser customer seller merchant shop store product item goods cate "
        "category cat genre price bid budget title headline color colour size image format sku movie news article topic "
        "duration video publisher year discount author director studio manufacturer"
    )
)
_OF_USERS = frozenset(
    words(
        "user age gender sex male female income salary education occupation job marital married city province country "
        "region state zip zipcode postcode nationality segid cms level shopping pvalue vip member membership interest "
        "interests tenure registration signup language children household estimated"
    )
)
_OF_ROWS = frozenset(
    words(
        "device os browser hour day week weekday month network site app page slot position placement channel ip conn "
        "connection refresh session platform referrer referer model carrier time daytime exchange domain url screen pos "
        "pid"
    )
)
_CODES = frozenset(
    words(
        "id ids token code type class group category cat cate gender sex brand campaign customer advertiser seller device "
        "os network channel zone region city province state country flag is has slot pid occupation job model version "
        "hash segid lang language browser platform app site ip publisher zip zipcode postcode cluster bucket carrier conn "
        "connection weekday month hour dayofweek level male female married biz page placement exchange interest"
    )
)
_MEASURES = frozenset(
    words(
        "age count counts num number price amount days hours minutes seconds salary income duration size length width "
        "height score balance ratio rate share pct percent percentage avg mean sum total spent usage budget bid area "
        "distance weight temperature frequency freq times age0 age1 age2 age3 refresh quantity qty value discount rank "
        "visits views"
    )
)
_PEOPLE_AND_PLACES = re.compile(
    r"user|person|customer|full_?name|first_?name|last_?name|city|town|country|province|state|region|address|street|agent|url|uri|link"
    r"|referr?er|query|keyword|search|comment|review|email|phone|browser|device|model|domain|host|ip$|gender|language|interest|tag"
    r"|history|姓名|城市|省|地区|国家|评论|关键词|搜索"
)
_PERSONAL = re.compile(
    r"(^|_)(full|first|last|user|customer|person|family|given)_?name(_|$)|(^|_)(e_?mail|phone|mobile_number|telephone|street)(_|$)|姓名|手机号|邮箱"
)
_CODE_NAMES = re.compile(r"(c|cat|cate|category|code|categorical)_?\d+")
_ROW_NAMES = frozenset(
    {
        "",
        "index",
        "idx",
        "row",
        "rowid",
        "rownumber",
        "rownum",
        "rowno",
        "no",
        "nr",
        "unnamed0",
        "column0",
        "序号",
        "编号",
        "id",
        "sn",
    }
)


def plain(name: str) -> str:
    """Letters and digits in lower case: `User ID`, `userId` and `user.id` are `userid`."""
    return re.sub(r"[\W_]+", "", name.lower())


def snake(name: str) -> str:
    """Words in lower case joined by `_`: `Clicked on Ad` is `clicked_on_ad`, `userId` is `user_id`."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"[\W_]+", "_", parted.lower()).strip("_")


def likeness(name: str, canonical: str) -> int | None:
    """How far down the list of names for `canonical` this one stands (0 is best), None where it is none of them."""
    wanted = [plain(other) for other in NAMES[canonical]]
    if plain(name) in wanted:
        return wanted.index(plain(name))
    ending = _ENDINGS.get(canonical)
    if ending is not None and re.fullmatch(rf"(\w+_)?{ending}", snake(name)):
        return len(wanted)
    if canonical == "ad_id" and plain(name) in {plain(other) for other in _STANDS_FOR_AN_AD}:
        return len(wanted) + 1
    return None


def owner(name: str) -> str | None:
    """Whom a column of this name usually describes: ads, users or impressions; None where the name says nothing."""
    words = re.sub(r"\d+", "", snake(name)).split("_")
    hits = {role: sum(word in known for word in words) for role, known in _OWNERS.items()}
    best = max(hits, key=hits.__getitem__)
    return best if hits[best] and list(hits.values()).count(hits[best]) == 1 else None


def is_code(name: str) -> bool | None:
    """Whether whole numbers of this name are codes (True) or measures (False); None where the name says nothing."""
    if _CODE_NAMES.fullmatch(snake(name)):
        return True
    words = snake(name).split("_")
    if words[-1] in _MEASURES or words[0] in {"num", "count", "avg", "total", "number", "days", "n"}:
        return False
    if words[-1] in _CODES or words[0] in {"is", "has"} or plain(name).endswith(("id", "code", "type")):
        return True
    return False if set(words) & _MEASURES else True if set(words) & _CODES else None


def family(name: str) -> str | None:
    """`I` of I1 to I13: columns that differ by a number are of one kind."""
    match = re.fullmatch(r"(.*?[^\d])_?\d+", name)
    return match.group(1) if match else None


def is_of_people_or_places(name: str) -> bool:
    """Text of this name is no text of an ad: a city, a person, a query, an address."""
    return _PEOPLE_AND_PLACES.search(snake(name)) is not None


def is_of_a_person(name: str) -> bool:
    """What identifies a person and describes nothing: a name, an address, a number to call."""
    return _PERSONAL.search(snake(name)) is not None


def is_coarse(name: str) -> bool:
    """Names of groups of ads: a group, a set, a campaign."""
    return re.search(r"group|ad_?set|campaign|活动|计划", snake(name)) is not None


def is_row_name(name: str) -> bool:
    """Names under which tools write row numbers."""
    return plain(name) in _ROW_NAMES


_OWNERS = {"ads": _OF_ADS, "users": _OF_USERS, "impressions": _OF_ROWS}
