// The status page: asks the daemon every two seconds and draws what it says. It changes nothing.
// Every number on the page carries the exact one of the answer in `data-exact`.
"use strict";

const PERIOD_MS = 2000;
const POINTS_MAX = 300; // ten minutes
const POINTS_MIN = 30; // one minute: the width of a chart that has just begun
// After the `#`, so that it is in no log of a server.
const token = new URLSearchParams(location.hash.slice(1)).get("token");

/** Fetches a path of the API; throws with the daemon's own words. */
async function ask(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, cache: "no-store" });
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response.json();
}

// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}
const count = (value) => value.toLocaleString("en-US");
const percent = (value) => `${value.toFixed(1)} %`;
const perSecond = (value) => (value >= 10 ? count(Math.round(value)) : value.toFixed(1)) + "/s";
const bytesPerSecond = (value) => `${bytes(value)}/s`;
function seconds(value) {
  if (value < 1e-3) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(1)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

// Elements.

const SVG = "http://www.w3.org/2000/svg";
function element(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "text", "title"].includes(name);
  const it = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) it.setAttribute(key, value);
  it.append(...children.filter((child) => child !== null && child !== undefined));
  return it;
}
/** A number as text, with the exact one and its place in the report. */
function exact(place, value, show) {
  return element("span", { "data-place": place, "data-exact": value }, show(value));
}
/** A number of another answer: the path that gives it, and its place there. */
function exactOf(path, place, value, show) {
  return element("span", { "data-path": path, "data-place": place, "data-exact": value }, show(value));
}
const cell = (...children) => element("td", { class: "number" }, ...children);
function list(pairs) {
  const rows = pairs
    .filter(Boolean)
    .flatMap(([name, ...value]) => [element("dt", {}, name), element("dd", {}, ...value)]);
  return element("dl", {}, ...rows);
}

// What changes over time: the reports of the last minutes.

const history = []; // {at: seconds, report}

/** The rate of a counter between two reports, or null over a restart of the daemon. */
function rate(earlier, later, take) {
  const [before, after] = [take(earlier.report), take(later.report)];
  if (before === undefined || after === undefined || after < before) return null;
  return (after - before) / Math.max(later.at - earlier.at, 1e-3);
}
function rates(take) {
  return history.slice(1).map((later, index) => rate(history[index], later, take));
}
const latest = (values) => values.findLast((value) => value !== null) ?? null;

/** The end of the bucket, in nanoseconds, below which that share of the requests between two reports
 * ended; null: there were none. `take` gives lists of latencies of a report. */
function percentile(earlier, later, share, take) {
  const counts = new Map();
  const add = (report, sign) => {
    for (const latency of take(report) ?? [])
      for (const [end, number] of latency.buckets)
        counts.set(end, (counts.get(end) ?? 0) + sign * number);
  };
  add(later.report, 1);
  add(earlier.report, -1);
  const rows = [...counts].filter(([, number]) => number > 0).sort((a, b) => a[0] - b[0]);
  const all = rows.reduce((sum, [, number]) => sum + number, 0);
  let seen = 0;
  for (const [end, number] of rows) {
    seen += number;
    if (seen >= share * all) return end;
  }
  return null;
}
const percentiles = (share, take) =>
  history.slice(1).map((later, index) => percentile(history[index], later, share, take));

/** A chart of some traces: {name, values (null: unknown), show}; all to one scale. */
function chart(title, traces, show, ceiling) {
  const known = traces.flatMap((trace) => trace.values).filter((value) => value !== null);
  const most = ceiling ?? Math.max(...known, 1e-9);
  const width = 300,
    height = 84,
    points = Math.max(POINTS_MIN, traces[0].values.length),
    at = (index) => (index + points - traces[0].values.length) * (width / (points - 1));
  const paths = traces.map((trace, number) => {
    let line = "",
      pen = "M";
    trace.values.forEach((value, index) => {
      if (value === null) {
        pen = "M";
        return;
      }
      const y = height - (Math.min(value, most) / most) * (height - 12);
      line += `${pen}${at(index).toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    });
    return element("path", { class: `trace trace${number}`, d: line });
  });
  const words = traces.map((trace) => {
    const now = latest(trace.values);
    return `${trace.name} ${now === null ? "unknown" : show(now)}`;
  });
  const picture = element(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${width} ${height + 1}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${title}: ${words.join(", ")}; top line: ${show(most)}`,
    },
    element("line", { class: "axis", x1: 0, y1: height, x2: width, y2: height }),
    element("line", { class: "axis", x1: 0, y1: 12, x2: width, y2: 12 }),
    ...paths,
  );
  const key = traces.map((trace, number) =>
    element(
      "li",
      {},
      element(
        "svg",
        { viewBox: "0 0 24 10", "aria-hidden": "true" },
        element("path", { class: `trace trace${number}`, d: "M0,5L24,5" }),
      ),
      words[number],
    ),
  );
  return element(
    "div",
    { class: "card" },
    element("h3", {}, title),
    element("p", { class: "faint key" }, known.length ? `top line: ${show(most)}` : "nothing yet"),
    picture,
    element("ul", { class: "key" }, ...key),
  );
}

/** A bar of parts of a whole: {class, bytes, name}. */
function bar(parts, whole, label) {
  let at = 0;
  const rects = parts.map((part) => {
    const width = whole > 0 ? (part.bytes / whole) * 1000 : 0;
    const rect = element(
      "rect",
      { class: part.class, x: at, y: 0, width, height: 20 },
      element("title", {}, `${part.name} ${bytes(part.bytes)}`),
    );
    at += width;
    return rect;
  });
  return element(
    "svg",
    {
      class: "bar",
      viewBox: "0 0 1000 20",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": label,
    },
    element("rect", { class: "free", x: 0, y: 0, width: 1000, height: 20 }),
    ...rects,
  );
}

// The page.

const ratio = (hits, misses) =>
  hits === null || misses === null || hits + misses === 0 ? null : (100 * hits) / (hits + misses);

const nanoseconds = (value) => seconds(value / 1e9);
function latenciesOf(set, paths) {
  return set?.volumes.flatMap((volume) =>
    paths.map((path) => volume.requests[path]?.latency).filter(Boolean),
  );
}

function charts(set, index) {
  const of = (report) => (report.sets[index]?.uuid === set.uuid ? report.sets[index] : undefined);
  const sum = (take) => (report) =>
    of(report)?.volumes.reduce((total, volume) => total + take(volume), 0);
  const hits = rates(sum((volume) => volume.stats.cache_hits));
  const misses = rates(sum((volume) => volume.stats.cache_misses));
  const device = (take) => rates((report) => of(report) && take(of(report)));
  const latencies = (...paths) => [
    { name: "half", values: percentiles(0.5, (report) => latenciesOf(of(report), paths)) },
    { name: "99 %", values: percentiles(0.99, (report) => latenciesOf(of(report), paths)) },
  ];
  return [
    chart("Latency of reads", latencies("hit", "miss", "bypass_read"), nanoseconds),
    chart(
      "Latency of writes",
      latencies("writeback_write", "writethrough_write", "bypass_write"),
      nanoseconds,
    ),
    chart(
      "Hit ratio",
      [{ name: "hits", values: hits.map((hit, at) => ratio(hit, misses[at])) }],
      percent,
      100,
    ),
    chart(
      "Reads",
      [
        { name: "hits", values: hits },
        { name: "misses", values: misses },
      ],
      perSecond,
    ),
    chart(
      "Cache device",
      [
        { name: "read", values: device((it) => it.cache.read_bytes) },
        { name: "written", values: device((it) => it.cache.written_bytes) },
      ],
      bytesPerSecond,
    ),
    chart(
      "Backing devices",
      [
        { name: "read", values: rates(sum((volume) => volume.backing.read_bytes)) },
        { name: "written", values: rates(sum((volume) => volume.backing.written_bytes)) },
      ],
      bytesPerSecond,
    ),
    chart(
      "Dirty data",
      [
        {
          name: "dirty",
          values: history.map(({ report }) => of(report)?.cache.dirty_bytes ?? null),
        },
      ],
      bytes,
    ),
  ];
}

function cacheCard(set, place) {
  const cache = set.cache;
  const clean = Math.max(cache.used_bytes - cache.dirty_bytes, 0);
  const parts = [
    { class: "used", bytes: clean, name: "clean data and metadata" },
    { class: "dirty", bytes: cache.dirty_bytes, name: "dirty" },
    {
      class: "aside",
      bytes: cache.put_aside_bytes,
      name: "put aside: the file system below is full",
    },
  ];
  const words = parts.map((part) => `${part.name} ${bytes(part.bytes)}`);
  const label = `of ${bytes(cache.size_bytes)}: ${words.join(", ")}`;
  return element(
    "div",
    { class: "card" },
    element("h3", {}, "Cache"),
    element("p", { class: "faint" }, cache.path || "none"),
    bar(parts, cache.size_bytes, label),
    list([
      ["size", exact(`${place}/cache/size_bytes`, cache.size_bytes, bytes)],
      [
        "in use",
        exact(`${place}/cache/used_bytes`, cache.used_bytes, bytes),
        cache.counted ? "" : " (still counting)",
      ],
      ["dirty", exact(`${place}/cache/dirty_bytes`, cache.dirty_bytes, bytes)],
      ["read", exact(`${place}/cache/read_bytes`, cache.read_bytes, bytes)],
      ["written", exact(`${place}/cache/written_bytes`, cache.written_bytes, bytes)],
      ["failed requests", exact(`${place}/cache/errors`, cache.errors, count)],
    ]),
  );
}

function writebackWords(writeback) {
  const left = writeback.seconds_left;
  if (writeback.state !== "running") return writeback.state;
  const speed = bytesPerSecond(writeback.bytes_per_second);
  return left === null ? speed : `${speed}, ${seconds(left)} left`;
}

const WORDS = ["volume", "state", "mode", "writeback", "requests", "frontend"];
function column(word) {
  return element("th", { scope: "col", class: WORDS.includes(word) ? "word" : "number" }, word);
}

function volumesCard(set, place) {
  const head = [
    "volume",
    "state",
    "mode",
    "size",
    "dirty",
    "writeback",
    "hits",
    "misses",
    "hit ratio",
    "past the cache",
    "errors",
  ];
  const rows = set.volumes.map((volume, index) => {
    const at = `${place}/volumes/${index}`;
    const all = ratio(volume.stats.cache_hits, volume.stats.cache_misses);
    return element(
      "tr",
      {},
      element("th", { scope: "row", title: volume.uris.join("\n") }, volume.name),
      element("td", {}, volume.state),
      element("td", {}, volume.mode),
      cell(exact(`${at}/size_bytes`, volume.size_bytes, bytes)),
      cell(exact(`${at}/dirty_bytes`, volume.dirty_bytes, bytes)),
      element("td", {}, writebackWords(volume.writeback)),
      cell(exact(`${at}/stats/cache_hits`, volume.stats.cache_hits, count)),
      cell(exact(`${at}/stats/cache_misses`, volume.stats.cache_misses, count)),
      cell(all === null ? "none yet" : percent(all)),
      cell(exact(`${at}/stats/bypassed_bytes`, volume.stats.bypassed_bytes, bytes)),
      cell(exact(`${at}/backing/errors`, volume.backing.errors, count)),
    );
  });
  const absent = set.absent.map((disk) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, disk.label || disk.uuid),
      element(
        "td",
        { colspan: head.length - 1 },
        `absent; the cache has ${bytes(disk.dirty_bytes)} of dirty data for it`,
      ),
    ),
  );
  const down = set.down.map((disk) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, disk.name),
      element("td", { colspan: head.length - 1 }, `not served: ${disk.why.split("\n")[0]}`),
    ),
  );
  return element(
    "div",
    { class: "card wide", tabindex: "0", role: "region", "aria-label": "volumes" },
    element(
      "table",
      {},
      element("caption", { class: "faint" }, "Counts are since the start of the daemon."),
      element("thead", {}, element("tr", {}, ...head.map((word) => column(word)))),
      element("tbody", {}, ...rows, ...absent, ...down),
    ),
  );
}

function warningsCard(set) {
  if (set.warnings.length === 0) return null;
  return element(
    "div",
    { class: "card warnings" },
    element("h3", {}, "Warnings"),
    element("ul", {}, ...set.warnings.map((text) => element("li", {}, ...withCommands(text)))),
  );
}

/** A text in which commands stand between backticks, or at its end behind a colon. */
function withCommands(text) {
  const parts = text.replace(/: (ubcache [^`]+)$/, ": `$1`").split("`");
  return parts.map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

const PATHS = {
  hit: "hits",
  miss: "misses",
  bypass_read: "reads past the cache",
  writeback_write: "writes to the cache",
  writethrough_write: "writes to both",
  bypass_write: "writes past the cache",
  flush: "flushes",
  discard: "discards",
};

function latencyCard(set, place) {
  const times = ["p50_ns", "p90_ns", "p99_ns", "p999_ns"];
  const rows = set.volumes.flatMap((volume, index) =>
    Object.keys(PATHS)
      .filter((path) => volume.requests[path]?.latency.count > 0)
      .map((path) => {
        const { latency } = volume.requests[path];
        const at = `${place}/volumes/${index}/requests/${path}/latency`;
        return element(
          "tr",
          {},
          element("th", { scope: "row" }, volume.name),
          element("td", {}, PATHS[path]),
          cell(exact(`${at}/count`, latency.count, count)),
          ...times.map((name) => cell(exact(`${at}/${name}`, latency[name], nanoseconds))),
        );
      }),
  );
  if (rows.length === 0) return null;
  const head = ["volume", "requests", "number", "50 %", "90 %", "99 %", "99.9 %"];
  return element(
    "div",
    { class: "card wide", tabindex: "0", role: "region", "aria-label": "latencies" },
    element(
      "table",
      {},
      element("caption", { class: "faint" }, "Times that so many requests did not exceed."),
      element("thead", {}, element("tr", {}, ...head.map((word) => column(word)))),
      element("tbody", {}, ...rows),
    ),
  );
}

/** Block devices and guests; none if no export has one. */
function frontendsCard(set, place) {
  const row = (name, kind, state, at, frontend, again) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", {}, kind),
      element("td", {}, state),
      cell(exact(`${at}/queues`, frontend.queues, count)),
      cell(exact(`${at}/in_flight`, frontend.in_flight, count)),
      cell(again),
    );
  const of = (exports, list) =>
    exports.flatMap((it, index) => {
      const at = `${place}/${list}/${index}/frontends`;
      const devices = it.frontends.ublk.map((device, number) =>
        row(it.name, device.path, device.state, `${at}/ublk/${number}`, device, "not known"),
      );
      const guests = it.frontends.vhost_user.map((guest, number) => {
        const here = `${at}/vhost_user/${number}`;
        const broken = guest.broken_queues ? `, ${guest.broken_queues} queues broken` : "";
        const state = guest.connected ? `connected${broken}` : "not connected";
        const again = exact(`${here}/reissued`, guest.reissued, count);
        return row(it.name, `guest at ${guest.socket}`, state, here, guest, again);
      });
      return [...devices, ...guests];
    });
  const rows = [...of(set.volumes, "volumes"), ...of(set.flash, "flash")];
  if (rows.length === 0) return null;
  const head = ["volume", "frontend", "state", "queues", "in flight", "carried out again"];
  return element(
    "div",
    { class: "card wide", tabindex: "0", role: "region", "aria-label": "frontends" },
    element(
      "table",
      {},
      element("caption", { class: "faint" }, "Block devices and virtual machines."),
      element("thead", {}, element("tr", {}, ...head.map((word) => column(word)))),
      element("tbody", {}, ...rows),
    ),
  );
}

function setSection(set, index) {
  const place = `sets/${index}`;
  return element(
    "section",
    { class: "set", "aria-label": `cache set ${set.uuid}` },
    element("h2", { class: set.health }, `Set ${set.uuid}`),
    element("p", { class: "faint" }, set.state),
    warningsCard(set),
    adviceCard(set),
    volumesCard(set, place),
    element("div", { class: "cards" }, cacheCard(set, place), bucketsCard(set)),
    frontendsCard(set, place),
    mapsCard(set),
    latencyCard(set, place),
    element("div", { class: "cards" }, ...charts(set, index)),
  );
}

const WORST = ["healthy", "degraded", "failed"];
function draw(report) {
  const worst = report.sets.reduce((found, set) => Math.max(found, WORST.indexOf(set.health)), 0);
  const health = document.getElementById("health");
  health.className = WORST[worst];
  health.textContent = WORST[worst];
  document.getElementById("version").textContent =
    `version ${report.version}, ${report.sets.length} set${report.sets.length === 1 ? "" : "s"}`;
  document.title = `ubcache: ${WORST[worst]}`;
  const focused = document.activeElement?.getAttribute("aria-label");
  document.getElementById("sets").replaceChildren(...report.sets.map(setSection));
  if (focused) document.querySelector(`[tabindex][aria-label="${CSS.escape(focused)}"]`)?.focus();
}

async function turn() {
  try {
    const report = await ask("v1/status");
    history.push({ at: performance.now() / 1000, report });
    if (history.length > POINTS_MAX) history.shift();
    await lookAtMaps(report);
    draw(report);
  } catch (error) {
    const health = document.getElementById("health");
    health.className = "away";
    health.textContent = `no answer from the daemon (${error.message}); the numbers below are old`;
  }
  setTimeout(turn, PERIOD_MS);
}
addEventListener("DOMContentLoaded", turn);
