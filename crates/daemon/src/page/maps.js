// The part of the status page about places: what the buckets hold, which ranges are cached, and what
// fits the traffic. Asked for more rarely than the report: a map may read the whole index.
"use strict";

const MAPS_EVERY = 5; // reports
const BUCKET_CELLS = 256;
const RANGE_CELLS = 128;
const SIDE = 10; // of a cell, in a picture
const HATCH = "url(#hatch)"; // in a style sheet it would mean that of the sheet

const answers = new Map(); // path of the API → its latest answer
let looks = 0;

const bucketsPath = (set) => `v1/sets/${encodeURIComponent(set.uuid)}/buckets?cells=${BUCKET_CELLS}`;
const advicePath = (set) => `v1/sets/${encodeURIComponent(set.uuid)}/advice`;
function mapPath(set, volume) {
  const name = set.name ? `${set.name}/${volume.name}` : volume.name;
  return `v1/volumes/${encodeURIComponent(name)}/map?cells=${RANGE_CELLS}`;
}

/** Asks for all maps, if it is time; one that can't be drawn leaves its place empty. */
async function lookAtMaps(report) {
  looks += 1;
  if (looks % MAPS_EVERY !== 1) return;
  const sets = report.sets.filter((set) => set.state === "running");
  const paths = sets.flatMap((set) => [
    bucketsPath(set),
    advicePath(set),
    ...set.volumes.map((volume) => mapPath(set, volume)),
  ]);
  answers.clear();
  for (const path of paths) {
    try {
      answers.set(path, await ask(path));
    } catch {
      // The report says what is wrong.
    }
  }
}

/** A picture of cells in rows: {class, share(cell) from 0 to 1, hatched}, from the bottom up. */
function cells(all, columns, kinds, label, name) {
  const rows = Math.ceil(all.length / columns);
  const outline = (index, from, to) => {
    const x = (index % columns) * SIDE;
    const y = (Math.floor(index / columns) + 1) * SIDE;
    return `M${x},${(y - from * SIDE).toFixed(2)}h${SIDE}V${(y - to * SIDE).toFixed(2)}h-${SIDE}z`;
  };
  const lines = kinds.map(() => "");
  all.forEach((it, index) => {
    let from = 0;
    kinds.forEach((kind, number) => {
      const share = kind.share(it);
      if (share > 0) lines[number] += outline(index, from, from + share);
      from += share;
    });
  });
  const paths = kinds.flatMap((kind, number) => [
    element("path", { class: kind.class, d: lines[number] }),
    kind.hatched ? element("path", { class: "hatched", fill: HATCH, d: lines[number] }) : null,
  ]);
  return element(
    "svg",
    {
      class: name,
      viewBox: `0 0 ${columns * SIDE} ${rows * SIDE}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": label,
    },
    element("rect", { class: "free", x: 0, y: 0, width: columns * SIDE, height: rows * SIDE }),
    ...paths,
  );
}

/** The key of such a picture: kinds with their numbers. */
function keyOf(kinds) {
  const item = ([kind, hatched, ...words]) =>
    element(
      "li",
      {},
      element(
        "svg",
        { viewBox: "0 0 12 12", "aria-hidden": "true", class: "swatch" },
        element("rect", { class: kind, width: 12, height: 12 }),
        hatched ? element("rect", { class: "hatched", fill: HATCH, width: 12, height: 12 }) : null,
      ),
      ...words,
    );
  return element("ul", { class: "key" }, ...kinds.map(item));
}

const BUCKETS = [
  ["metadata", "meta", "metadata"],
  ["dirty", "dirty", "dirty"],
  ["clean", "used", "clean"],
  ["put_aside", "aside", "put aside"],
  ["free", "free", "free"],
  ["unknown", "unknown", "not counted yet"],
];

function bucketsCard(set) {
  const path = bucketsPath(set);
  const map = answers.get(path);
  if (!map) return null;
  const whole = (it) => BUCKETS.reduce((sum, [kind]) => sum + it[kind], 0);
  const shown = BUCKETS.filter(([kind]) => map.all[kind] > 0);
  const kinds = shown
    .filter(([kind]) => kind !== "free")
    .map(([kind, style]) => ({
      class: style,
      hatched: kind === "dirty",
      share: (it) => it[kind] / whole(it),
    }));
  const words = shown.map(([kind, , word]) => `${word} ${count(map.all[kind])}`);
  const label = `${count(map.buckets)} buckets of ${bytes(map.bucket_bytes)}: ${words.join(", ")}`;
  const key = shown.map(([kind, style, word]) => [
    style,
    kind === "dirty",
    `${word} `,
    exactOf(path, `all/${kind}`, map.all[kind], count),
  ]);
  return element(
    "div",
    { class: "card" },
    element("h3", {}, "Buckets"),
    element(
      "p",
      { class: "faint" },
      exactOf(path, "buckets", map.buckets, count),
      " of ",
      exactOf(path, "bucket_bytes", map.bucket_bytes, bytes),
      ", in the order of the device",
    ),
    cells(map.cells, 32, kinds, label, "heat"),
    keyOf(key),
  );
}

function mapsCard(set) {
  const rows = set.volumes.flatMap((volume) => {
    const path = mapPath(set, volume);
    const map = answers.get(path);
    if (!map) return [];
    const share = (take) => (it) => Math.min(take(it) / map.cell_bytes, 1);
    const kinds = [
      { class: "dirty", hatched: true, share: share((it) => it.dirty_bytes) },
      { class: "used", share: share((it) => it.cached_bytes - it.dirty_bytes) },
    ];
    const { cached_bytes: cached, dirty_bytes: dirty, size_bytes: size } = map;
    const label = `${volume.name}: ${bytes(cached)} of ${bytes(size)} cached, ${bytes(dirty)} dirty`;
    return [
      element("h4", {}, volume.name),
      cells(map.cells, map.cells.length, kinds, label, "map"),
      keyOf([
        ["used", false, "cached ", exactOf(path, "cached_bytes", cached, bytes)],
        ["dirty", true, "dirty ", exactOf(path, "dirty_bytes", dirty, bytes)],
        ["free", false, "of ", exactOf(path, "size_bytes", size, bytes)],
      ]),
    ];
  });
  if (rows.length === 0) return null;
  return element("div", { class: "card" }, element("h3", {}, "Cached ranges"), ...rows);
}

function adviceCard(set) {
  const path = advicePath(set);
  const report = answers.get(path);
  if (!report || report.advice.length === 0) return null;
  const items = report.advice.map((it) =>
    element(
      "li",
      {},
      it.volume ? `${it.volume}: ` : "",
      `${it.reason}: `,
      element("code", {}, it.command),
    ),
  );
  return element(
    "div",
    { class: "card" },
    element("h3", {}, "Advice from the traffic"),
    element("ul", {}, ...items),
  );
}
