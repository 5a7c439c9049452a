"use strict";
const TEXTS = {
  en: {
    user: "User", interests: "Interests (commas; empty: what is known)", clicks: "Clicked ads (ids, commas; empty: what is known)",
    scenario: "Scenario", query: "Search", key: "API key", rank: "Rank ads", why: "Why?", click: "Click", bid: "Bid", set: "Set",
    working: "Ranking…", none: "No ad may be shown here: the rules, budgets or caps leave none.", other: "中文",
    about: (a) => `${a.ads.toLocaleString()} ads, bundle ${Object.values(a.bundles).join(" / ")}`, score: "click probability", conversion: "conversion probability", value: "value", price: "price per click",
    propensity: "shown with probability", edit: "Click to try other words", undo: "Undo", publish: "Publish", kept: "Published: everyone sees it now.", trying: (n) => `${n} tried here; nobody else sees it.`,
    now: (title, ad) => (ad ? `now “${title}”: place ${ad.rank}, ${(100 * ad.score).toFixed(1)}%` : `now “${title}”: not in the list`), clicked: "Recorded. Later lists know of this click.", explaining: "Explaining…", without: "without it:",
    health: "Do the lists keep their promises?", held: "Promised over observed, with its interval at 95 %: 1 is right, 2 is twice too much. Days are UTC; clicks and conversions of the newest are still to come.",
    day: "Day", arm: "Arm", shown: "Shown", clicks_held: "Clicks promised / came", conversions_held: "Conversions promised / came", ratio: "Ratio",
  },
  zh: {
    user: "用户", interests: "兴趣（逗号分隔；留空用已知的）", clicks: "点击过的广告（编号，逗号分隔；留空用已知的）",
    scenario: "场景", query: "搜索词", key: "API 密钥", rank: "排序", why: "为什么？", click: "点击", bid: "出价", set: "设定",
    working: "正在排序…", none: "规则、预算或频次上限之下没有可展示的广告。", other: "English",
    about: (a) => `${a.ads.toLocaleString()} 条广告，模型 ${Object.values(a.bundles).join(" / ")}`, score: "点击概率", conversion: "转化概率", value: "价值", price: "每次点击价格",
    propensity: "展示概率", edit: "点击可试改文字", undo: "撤销", publish: "发布", kept: "已发布，所有人可见。", trying: (n) => `正在试改 ${n} 处，仅此页可见。`,
    now: (title, ad) => (ad ? `现为“${title}”：第 ${ad.rank} 位，${(100 * ad.score).toFixed(1)}%` : `现为“${title}”：不在列表中`), clicked: "已记录，之后的排序会考虑这次点击。", explaining: "正在解释…", without: "没有它时：",
    health: "预测是否兑现？", held: "预测数与实际数之比及其 95% 区间：1 为准确，2 为高估一倍。日期为 UTC；最近几天的点击和转化尚未到齐。",
    day: "日期", arm: "组", shown: "展示", clicks_held: "点击 预测 / 实际", conversions_held: "转化 预测 / 实际", ratio: "比值",
  },
};
const at = (id) => document.getElementById(id);
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let about = null;
let places = new Map();
let edits = []; // what is tried, in order: {id, fields}
let present = new Map(); // ads of the list as it is

function tried() {
  const trial = {};
  edits.forEach(({ id, fields }) => { trial[id] = { ...trial[id], ...fields }; });
  return trial;
}

function say(text, fault = false) {
  at("message").textContent = text;
  at("message").classList.toggle("fault", fault);
}

async function call(method, path, body) {
  const headers = { "content-type": "application/json" };
  if (at("key").value) headers["x-api-key"] = at("key").value;
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const found = await answer.json().catch(() => ({ detail: answer.statusText }));
  if (answer.status === 401) at("key-line").hidden = false;
  if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : found.detail.map((f) => `${f.where}: ${f.what}`).join("; "));
  return found;
}

function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  root.querySelectorAll("[data-text]").forEach((node) => { node.textContent = TEXTS[language][node.dataset.text]; });
  at("language").textContent = TEXTS[language].other;
  if (about) at("about").textContent = TEXTS[language].about(about);
}

function listed(id) {
  const values = at(id).value.split(/[,，]/).map((part) => part.trim()).filter(Boolean);
  return values.length ? values : null;
}

function described() {
  const user = { user_id: at("user").value.trim() || null };
  const interests = listed("interests");
  const history = listed("clicks");
  if (interests) user.interests = interests;
  if (history) user.history = history;
  return user;
}

async function rank() {
  const text = TEXTS[language];
  say(text.working);
  const request = { ...described(), scenario: at("scenario").value };
  if (at("query").value.trim()) request.query = at("query").value.trim();
  try {
    const answer = edits.length
      ? await call("POST", "v1/try", { request, trials: [tried()] })
      : await call("POST", "v1/rank", { requests: [request] });
    const list = answer.lists[answer.lists.length - 1];
    present = new Map(answer.lists[0].ads.map((ad) => [ad.ad_id, ad]));
    draw(list);
    at("trial").hidden = edits.length === 0;
    at("tried").textContent = text.trying(edits.length);
    say(list.ads.length ? "" : text.none);
  } catch (error) {
    say(error.message, true);
  }
}

function draw(list) {
  const before = places;
  places = new Map(list.ads.map((ad) => [ad.ad_id, ad.rank]));
  at("list").replaceChildren(...list.ads.map((ad) => card(list, ad, before.get(ad.ad_id), before.size > 0)));
}

function card(list, ad, before, moved) {
  const text = TEXTS[language];
  const node = at("card").content.cloneNode(true).firstElementChild;
  translate(node);
  node.dataset.ad = ad.ad_id;
  const place = node.querySelector(".place");
  place.textContent = ad.rank;
  if (moved && before !== ad.rank) {
    const mark = document.createElement("span");
    mark.className = `moved ${before === undefined || before > ad.rank ? "up" : "down"}`;
    mark.textContent = before === undefined ? "●" : before > ad.rank ? `▲${before - ad.rank}` : `▼${ad.rank - before}`;
    place.append(mark);
  }
  const heading = node.querySelector("h2");
  heading.textContent = ad.title;
  heading.title = text.edit;
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); heading.blur(); } });
  heading.addEventListener("blur", () => {
    const title = heading.textContent.trim();
    if (title && title !== ad.title) attempt(ad.ad_id, { title });
    else heading.textContent = ad.title;
  });
  if (ad.ad_id in tried()) {
    const now = node.querySelector(".now");
    now.hidden = false;
    const before = present.get(ad.ad_id);
    now.textContent = text.now(before ? before.title : edits.find((edit) => edit.id === ad.ad_id).title, before);
  }
  node.querySelector(".reason").textContent = ad.reason;
  const numbers = [`${text.score} ${(100 * ad.score).toFixed(1)}%`, `${text.value} ${ad.value.toFixed(4)}`];
  if (ad.score_conversion !== null) numbers.push(`${text.conversion} ${(100 * ad.score_conversion).toFixed(2)}%`);
  if (ad.price !== null) numbers.push(`${text.price} ${ad.price.toFixed(3)}`);
  if (ad.propensity_given_above < 1) numbers.push(`${text.propensity} ${(100 * ad.propensity_given_above).toFixed(1)}%`);
  node.querySelector(".numbers").textContent = [...numbers, ad.ad_id].join(" · ");
  node.querySelector(".bar i").style.width = `${Math.min(100, 100 * ad.score)}%`;
  node.querySelector(".why").addEventListener("click", () => explain(node, ad.ad_id));
  node.querySelector(".click").addEventListener("click", () => click(list, ad));
  const bid = node.querySelector(".bid input");
  bid.value = ad.bid ?? "";
  node.querySelector(".bid").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(ad.ad_id, { bid: bid.value === "" ? null : Number(bid.value) });
  });
  return node;
}

async function click(list, ad) {
  const event = {
    user_id: list.user_id, ad_id: ad.ad_id, kind: "click", request_id: list.request_id, arm: list.arm,
    position: ad.rank, score: ad.score, score_conversion: ad.score_conversion, propensity_given_above: ad.propensity_given_above,
  };
  if (ad.price !== null) event.price = ad.price;
  try {
    await call("POST", "v1/events", { events: [event] });
    await rank();
    say(TEXTS[language].clicked);
    drawHealth((await call("GET", "v1/about")).health);
  } catch (error) {
    say(error.message, true);
  }
}

function drawHealth(rows) {
  const held = (ratio, low, high) => (low === null ? "–" : `${ratio === null ? "–" : ratio.toFixed(2)}\n[${low.toFixed(2)}, ${high === null ? "∞" : high.toFixed(2)}]`);
  const against = (promised, came, known) => `${known ? promised.toFixed(1) : "–"} / ${came.toLocaleString()}`;
  at("health").hidden = rows.length === 0;
  at("health").querySelector("tbody").replaceChildren(...rows.slice().reverse().map((row) => {
    const line = document.createElement("tr");
    const cells = [
      row.day, row.arm, row.impressions.toLocaleString(), against(row.promised, row.clicks, row.low !== null), held(row.ratio, row.low, row.high),
      against(row.promised_conversions, row.conversions, row.conversion_low !== null), held(row.conversion_ratio, row.conversion_low, row.conversion_high),
    ];
    line.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return line;
  }));
}

async function attempt(id, fields) {
  const before = present.get(id);
  edits.push({ id, fields, title: before ? before.title : id });
  await rank();
}

async function publish() {
  try {
    for (const [id, fields] of Object.entries(tried())) {
      const path = `v1/ads/${encodeURIComponent(id)}`;
      await call("PUT", path, { ...(await call("GET", path)), ...fields });
    }
    edits = [];
    await rank();
    say(TEXTS[language].kept);
  } catch (error) {
    at("key-line").hidden = false;
    say(error.message, true);
  }
}

async function explain(node, id) {
  const parts = node.querySelector(".parts");
  if (!parts.hidden) { parts.hidden = true; return; }
  parts.hidden = false;
  parts.textContent = TEXTS[language].explaining;
  const request = { user: described(), ad_id: id, scenario: at("scenario").value, language };
  if (at("query").value.trim()) request.query = at("query").value.trim();
  try {
    const found = await call("POST", "v1/explain", request);
    const sentence = document.createElement("p");
    sentence.textContent = found.sentence;
    const most = Math.max(...found.parts.map((p) => Math.abs(p.contribution)), 1e-9);
    const words = document.createElement("p");
    let end = 0;
    // Python counts characters, JavaScript halves of some: [...text] makes the places agree.
    const letters = [...found.text];
    found.words.forEach((word) => { words.append(letters.slice(end, word.start).join("").replaceAll("[SEP]", "·"), lit(word, most)); end = word.end; });
    words.append(letters.slice(end).join(""));
    const changes = found.counterfactuals.filter((change) => ["interests", "query", "clicks"].includes(change.kind)).map((change) => {
      const node = document.createElement("p");
      node.textContent = `${change.label}: ${percent(found.score)} → ${percent(change.score)}`;
      return node;
    });
    parts.replaceChildren(sentence, words, ...found.parts.slice(0, 8).map((part) => line(part, most)), ...changes);
  } catch (error) {
    parts.textContent = error.message;
  }
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function lit(word, most) {
  const node = document.createElement("span");
  node.className = "word";
  node.textContent = word.text;
  const strength = Math.round(60 * Math.min(1, Math.abs(word.contribution) / most));
  node.style.background = `color-mix(in srgb, var(${word.contribution >= 0 ? "--up" : "--down"}) ${strength}%, transparent)`;
  node.title = word.contribution.toFixed(3);
  return node;
}

function line(part, most) {
  const node = document.createElement("div");
  node.className = "part";
  const name = document.createElement("span");
  name.textContent = part.label;
  name.title = part.without === null ? part.label : `${part.label} (${TEXTS[language].without} ${percent(part.without)})`;
  const bar = document.createElement("i");
  bar.style.width = `${(100 * Math.abs(part.contribution)) / most}%`;
  bar.style.background = `var(${part.contribution >= 0 ? "--up" : "--down"})`;
  const number = document.createElement("b");
  number.textContent = (part.contribution >= 0 ? "+" : "−") + Math.abs(part.contribution).toFixed(3);
  node.append(name, bar, number);
  return node;
}

async function begin() {
  translate();
  try {
    about = await call("GET", "v1/about");
    at("users").replaceChildren(...about.users.map((user) => new Option(user)));
    at("scenario").replaceChildren(...about.policies.map((name) => new Option(name)));
    at("user").value = about.users[0] || "";
    at("about").dataset.state = "ready";
    drawHealth(about.health);
    translate();
    await rank();
  } catch (error) {
    say(error.message, true);
  }
}

at("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; translate(); if (places.size) rank(); });
at("ask").addEventListener("submit", (event) => { event.preventDefault(); places = new Map(); rank(); });
at("key").addEventListener("change", () => { if (!about) begin(); });
at("undo").addEventListener("click", () => { edits.pop(); rank(); });
at("publish").addEventListener("click", publish);
begin();
