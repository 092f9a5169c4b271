// One page, one customer at a time. Rows come by Server-Sent Events the moment they change; once a second the same key is asked for, which says
// whether what is shown is live, from a snapshot and how old, or cannot be had. What was last known stays on the screen.
const EVERY = 1000, MONTHS = 6, SECONDS = 60;
const by = (id) => document.getElementById(id);
const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en");
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

let customer = decodeURIComponent(location.hash.slice(1)) || "Emma";
let months = new Map(), kinds = new Map(), stream = null, lastAnswer = null;
const strip = [];

// ---- what is known

// Totals and counts of this job only grow, so of two rows of one month the one that counts more events is the newer, wherever it comes from.
function take(rows) {
  for (const row of rows) {
    const known = months.get(row.month);
    if (known === undefined || known.events <= row.events) months.set(row.month, row);
  }
}

function choose(name) {
  customer = name;
  months = new Map();
  location.hash = encodeURIComponent(name);
  listen();
  show();
  ask();
}

function listen() {
  stream?.close();
  const mine = (stream = new EventSource(`/views/monthly_subtotals/changes?key=${encodeURIComponent(JSON.stringify([customer]))}`));
  const rows = (event) => {
    if (mine !== stream) return;
    take(JSON.parse(event.data).rows);
    show();
  };
  mine.addEventListener("rows", rows);
  // Where nothing is left to connect to, the browser gives up; the next good answer begins again.
  mine.addEventListener("failed", () => mine.close());
}

async function json(path, options = {}) {
  const response = await fetch(path, { signal: AbortSignal.timeout(5000), cache: "no-store", ...options });
  const body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.error?.message ?? response.statusText), { status: response.status });
  return body;
}

const sql = (query) => json("/sql", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ query }) });

let asking = 0;
async function ask() {
  const mine = ++asking, name = customer;
  try {
    const found = await json(`/views/monthly_subtotals/${encodeURIComponent(name)}`);
    if (mine !== asking) return;
    take(found.rows);
    lastAnswer = Date.now();
    state(found.answer.live ? "live" : "saved", found.answer.as_of);
    if (stream.readyState === EventSource.CLOSED && found.answer.live) listen();
  } catch (error) {
    if (mine !== asking) return;
    if (error.status === 404) state("live", new Date().toISOString(), `nothing of ${name} yet`);
    else state("gone", null, error.message);
  }
  show();
}

async function askKinds() {
  try {
    const rows = (await sql(`select kind, month, total from type_subtotals order by month desc, kind limit ${8 * MONTHS}`)).rows;
    kinds = new Map();
    for (const row of rows) kinds.set(row.month, (kinds.get(row.month) ?? new Map()).set(row.kind, row.total));
    showKinds();
  } catch { /* the other question says what is wrong */ }
}

async function askCustomers() {
  try {
    const rows = (await sql("select distinct customer from monthly_subtotals order by customer")).rows;
    const names = rows.map((row) => row.customer), select = by("customer");
    if (!names.includes(customer)) names.unshift(customer);
    if (names.join("\n") === [...select.options].map((each) => each.value).join("\n")) return;
    select.replaceChildren(...names.map((name) => new Option(name, name, name === customer, name === customer)));
  } catch { /* the same */ }
}

// ---- what is shown

function state(found, asOf, why = "") {
  const was = document.body.dataset.state;
  document.body.dataset.state = found;
  const age = asOf === null ? 0 : Math.max(0, (Date.now() - Date.parse(asOf)) / 1000);
  const said = {
    live: why || "live",
    saved: `from a snapshot, ${age.toFixed(0)} s old; the job is away`,
    gone: `not reachable${lastAnswer === null ? "" : ` since ${clock.format(lastAnswer)}`}; this is what was last known`,
  }[found];
  if (by("said").textContent !== said) by("said").textContent = said;
  by("status").title = found === "gone" ? why : "";
  strip.push(found);
  while (strip.length > SECONDS) strip.shift();
  const empty = Array(SECONDS - strip.length).fill("");
  by("strip").replaceChildren(...[...empty, ...strip].map((each) => Object.assign(document.createElement("li"), { className: each })));
  if (was === "gone" && found !== "gone") askCustomers();
}

function cell(kind, text, bar) {
  const made = document.createElement(kind);
  made.textContent = text;
  if (kind === "th") made.scope = bar ?? "col";
  else if (bar !== undefined) made.append(Object.assign(document.createElement("span"), { className: "bar", style: `width: ${(100 * bar).toFixed(1)}%` }));
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

const newest = (from) => [...from.keys()].sort().reverse().slice(0, MONTHS);
const named = (month) => day.format(Date.parse(month));

function show() {
  const starts = newest(months), current = months.get(starts[0]);
  by("heading").textContent = current ? `${customer}, month from ${named(current.month)}` : customer;
  by("amount").textContent = current ? money.format(current.total) : "–";
  by("asof").textContent = current ? `${whole.format(current.events)} events${lastAnswer === null ? "" : `, last answer ${clock.format(lastAnswer)}`}` : "–";
  by("months").tHead.replaceChildren(row(cell("th", "from"), ...starts.map((each) => cell("th", named(each)))));
  const line = (name, told) => row(cell("th", name, "row"), ...starts.map((each) => cell("td", told(months.get(each)))));
  by("months").tBodies[0].replaceChildren(line("total", (each) => money.format(each.total)), line("events", (each) => whole.format(each.events)));
}

function showKinds() {
  const starts = newest(kinds), names = [...new Set(starts.flatMap((each) => [...kinds.get(each).keys()]))].sort();
  const most = Math.max(...starts.flatMap((each) => [...kinds.get(each).values()]));
  by("kinds").tHead.replaceChildren(row(cell("th", "from"), ...starts.map((each) => cell("th", named(each)))));
  by("kinds").tBodies[0].replaceChildren(...names.map((name) => row(cell("th", name, "row"), ...starts.map((each) => {
    const total = kinds.get(each).get(name);
    return total === undefined ? cell("td", "") : cell("td", money.format(total), total / most);
  }))));
}

// ---- what can be done

by("who").addEventListener("submit", (event) => event.preventDefault());
by("customer").addEventListener("change", (event) => choose(event.target.value));

const token = document.querySelector("meta[name=page-token]").content;
if (token === "") by("kill").parentElement.hidden = true;
by("kill").addEventListener("click", async () => {
  by("kill").disabled = true;
  try {
    const { killed } = await json("/kill", { method: "POST", headers: { "x-page-token": token } });
    by("killed").textContent = `worker process ${killed} was killed at ${clock.format(Date.now())}`;
  } catch (error) {
    by("killed").textContent = error.message;
  }
  setTimeout(() => { by("kill").disabled = false; }, 3000);
});

choose(customer);
askCustomers();
askKinds();
setInterval(ask, EVERY);
setInterval(askKinds, EVERY);
setInterval(askCustomers, 10 * EVERY);
