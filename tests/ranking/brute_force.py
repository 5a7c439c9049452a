"""The reference: requests served one by one, candidates compared one by one, in plain Python."""

import math

from adrec.ranking.ledger import UNLIMITED


def serve_all(world, policies, released_of_block, block):
    """World: dict of plain lists. Returns one list a request of (ad, price, propensity or None)."""
    spent, campaign_count, user_ad, user_campaign, user_lists = {}, {}, {}, {}, {}
    lists = []
    for r, user in enumerate(world["user"]):
        policy = policies[world["policy"][r]]
        released = released_of_block(r // block) if policy.even_pacing else 1.0
        parts = []
        for c, ad in enumerate(world["ad"][r]):
            if ad < 0:
                continue
            score, value, bid = world["score"][r][c], world["value"][r][c], world["bid"][r][c]
            cost = math.ceil((0.0 if math.isnan(bid) else bid) * score * 1_000_000)
            budget = world["budget"][ad]
            campaign = world["campaign"][r][c]
            if policy.budget and not math.isnan(budget):
                whole = math.floor(budget * 1_000_000)
                left = (whole if released >= 1 else math.floor(whole * released)) - spent.get((world["day"][r], ad), 0)
                if cost > left:
                    continue
            if user_ad.get((user, ad), 0) >= policy.user_ad or user_lists.get(user, 0) >= policy.user_lists:
                continue
            if campaign >= 0:
                room = min(
                    policy.user_campaign - user_campaign.get((user, campaign), 0),
                    policy.campaign - campaign_count.get(campaign, 0),
                )
                if room <= 0:
                    continue
            else:
                room = UNLIMITED
            if value < policy.minimum_value:
                continue
            parts.append({"c": c, "ad": ad, "score": score, "value": value, "bid": bid, "campaign": campaign, "room": room})
        parts.sort(key=lambda part: (-part["value"], part["ad"]))
        for place, part in enumerate(parts):
            if policy.auctioned:
                following = parts[place + 1]["value"] if place + 1 < len(parts) else 0.0
                following = max(following, policy.minimum_value)
                wanted = following / part["score"] if part["score"] > 0 else 0.0
                part["price"] = min(max(wanted, policy.reserve), 0.0 if math.isnan(part["bid"]) else part["bid"])
            else:
                part["price"] = part["bid"]
        shown = []
        while len(shown) < policy.top_n:
            best = None
            for part in parts:
                if part in shown or not fits(part, shown, policy, world, r):
                    continue
                gain = gain_of(part, shown, world, r)
                if best is None or gain > best[0] or (gain == best[0] and part["ad"] < best[1]["ad"]):
                    best = (gain, part)
            if best is None:
                break
            shown.append(best[1])
        for part in shown:
            ad, campaign = part["ad"], part["campaign"]
            price = 0.0 if math.isnan(part["price"]) else part["price"]
            on = world["day"][r], ad
            spent[on] = spent.get(on, 0) + math.ceil(price * part["score"] * 1_000_000)
            user_ad[user, ad] = user_ad.get((user, ad), 0) + 1
            if campaign >= 0:
                campaign_count[campaign] = campaign_count.get(campaign, 0) + 1
                user_campaign[user, campaign] = user_campaign.get((user, campaign), 0) + 1
        if shown:
            user_lists[user] = user_lists.get(user, 0) + 1
        lists.append([(part["ad"], part["price"]) for part in shown])
    return lists, spent


def fits(part, shown, policy, world, r):
    for name, most in (("advertiser", policy.per_advertiser), ("category", policy.per_category)):
        group = world[name][r][part["c"]]
        if group >= 0 and sum(world[name][r][other["c"]] == group for other in shown) >= most:
            return False
    campaign = part["campaign"]
    return campaign < 0 or sum(other["campaign"] == campaign for other in shown) < part["room"]


def gain_of(part, shown, world, r):
    method, strength = world["diversity"]
    gain = math.log(max(part["value"], 1e-300))
    if method == "mmr":
        nearest = max((cosine(world["vector"][part["ad"]], world["vector"][other["ad"]]) for other in shown), default=0.0)
        return (1 - strength) * gain - strength * nearest
    if method == "calibrated":
        p = world["share"][r]
        counts = [0] * len(p)
        for other in [*shown, part]:
            category = world["category"][r][other["c"]]
            if category >= 0:
                counts[category] += 1
        q = [0.99 * count / (len(shown) + 1) + 0.01 * share for count, share in zip(counts, p, strict=True)]
        divergence = sum(share * math.log(share / other) for share, other in zip(p, q, strict=True) if share > 0)
        return (1 - strength) * gain - strength * divergence
    return gain


def cosine(one, other):
    norm = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / norm if norm else 0.0
