//! The cells of a map as characters: each kind has its own, and colours on a terminal.

use std::fmt::Write as _;

use ubcache_daemon::served::maps::{BucketCellReport, BucketsReport, VolumeMapReport};
use ubcache_daemon::size::show_size;

use super::super::visible;

/// Characters in a line.
const WIDTH: usize = 64;

/// Content of a cell.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Empty,
    PartlyClean,
    Clean,
    PartlyDirty,
    Dirty,
    Metadata,
    PutAside,
    Unknown,
}

impl Kind {
    /// Character, colour of a terminal, and colour of a picture.
    pub(super) fn signs(self) -> (char, &'static str, &'static str) {
        match self {
            Kind::Empty => ('.', "", "#d8d8d8"),
            Kind::PartlyClean => ('c', "\x1b[32m", "#9fd0a8"),
            Kind::Clean => ('C', "\x1b[1;32m", "#3d9150"),
            Kind::PartlyDirty => ('d', "\x1b[33m", "#f0b060"),
            Kind::Dirty => ('D', "\x1b[1;33m", "#d06a00"),
            Kind::Metadata => ('m', "\x1b[36m", "#4a7fc0"),
            Kind::PutAside => ('x', "\x1b[31m", "#b03030"),
            Kind::Unknown => ('?', "", "#808080"),
        }
    }
}

/// A map that can be drawn.
pub(super) struct Strip {
    /// The thing that it is a map of, with its sums.
    pub(super) title: String,
    /// Bytes of a cell.
    pub(super) cell_bytes: u64,
    pub(super) cells: Vec<Kind>,
    /// Kinds that may occur, in words.
    pub(super) legend: Vec<(Kind, &'static str)>,
}

/// The kind of a cell of a volume.
fn kind_of_range(cached: u64, dirty: u64, whole: u64) -> Kind {
    match (cached, dirty) {
        (0, _) => Kind::Empty,
        (_, 0) if cached < whole => Kind::PartlyClean,
        (_, 0) => Kind::Clean,
        (_, dirty) if dirty < whole => Kind::PartlyDirty,
        _ => Kind::Dirty,
    }
}

/// The kind of a cell of buckets: the one that an operator has to know of first.
fn kind_of_buckets(cell: &BucketCellReport) -> Kind {
    let BucketCellReport { free, clean, dirty, metadata, put_aside, unknown } = *cell;
    let whole = free + clean + dirty + metadata + put_aside + unknown;
    match () {
        () if unknown > 0 => Kind::Unknown,
        () if put_aside > 0 => Kind::PutAside,
        () if dirty == whole => Kind::Dirty,
        () if dirty > 0 => Kind::PartlyDirty,
        () if metadata == whole => Kind::Metadata,
        () if clean + metadata == whole => Kind::Clean,
        () if clean > 0 => Kind::PartlyClean,
        () if metadata > 0 => Kind::Metadata,
        () => Kind::Empty,
    }
}

impl Strip {
    pub(super) fn of_volume(map: &VolumeMapReport) -> Strip {
        let cells = map.cells.iter().enumerate().map(|(index, cell)| {
            let start = index as u64 * map.cell_bytes;
            let whole = map.cell_bytes.min(map.size_bytes - start.min(map.size_bytes));
            kind_of_range(cell.cached_bytes, cell.dirty_bytes, whole)
        });
        Strip {
            title: format!(
                "{}: {} of {} cached, {} of it dirty",
                visible(&map.volume),
                show_size(map.cached_bytes),
                show_size(map.size_bytes),
                show_size(map.dirty_bytes)
            ),
            cell_bytes: map.cell_bytes,
            cells: cells.collect(),
            legend: vec![
                (Kind::Empty, "nothing cached"),
                (Kind::PartlyClean, "partly cached"),
                (Kind::Clean, "all cached"),
                (Kind::PartlyDirty, "partly dirty"),
                (Kind::Dirty, "all dirty"),
            ],
        }
    }

    pub(super) fn of_buckets(map: &BucketsReport) -> Strip {
        let BucketCellReport { free, clean, dirty, metadata, put_aside, unknown } = map.all;
        let counting = if unknown > 0 { ", the others are being counted" } else { "" };
        let aside = if put_aside > 0 { format!(", {put_aside} put aside") } else { String::new() };
        Strip {
            title: format!(
                "{} buckets of {}: {free} free, {clean} clean, {dirty} dirty, {metadata} \
                 metadata{aside}{counting}",
                map.buckets,
                show_size(map.bucket_bytes)
            ),
            cell_bytes: map.cell_buckets * map.bucket_bytes,
            cells: map.cells.iter().map(kind_of_buckets).collect(),
            legend: vec![
                (Kind::Empty, "free"),
                (Kind::PartlyClean, "some clean"),
                (Kind::Clean, "clean"),
                (Kind::PartlyDirty, "some dirty"),
                (Kind::Dirty, "dirty"),
                (Kind::Metadata, "metadata"),
                (Kind::PutAside, "put aside"),
                (Kind::Unknown, "not counted yet"),
            ],
        }
    }

    /// The map as text, with the place of each line.
    pub(super) fn text(&self, colours: bool) -> String {
        let place = |line: usize| show_size((line * WIDTH) as u64 * self.cell_bytes);
        let lines: Vec<&[Kind]> = self.cells.chunks(WIDTH).collect();
        let width = (0..lines.len()).map(|line| place(line).len()).max().unwrap_or(0);
        let mut text = format!("{}\n", self.title);
        for (index, line) in lines.into_iter().enumerate() {
            let _ = write!(text, "{:>width$} ", place(index));
            // A colour is written once for all cells in a row that have it.
            for same in line.chunk_by(|one, other| one == other) {
                let (sign, colour, _) = same[0].signs();
                let signs = String::from(sign).repeat(same.len());
                text += &match colours && !colour.is_empty() {
                    true => format!("{colour}{signs}\x1b[0m"),
                    false => signs,
                };
            }
            text.push('\n');
        }
        let legend = self.legend.iter().map(|(kind, words)| format!("{} {words}", kind.signs().0));
        let legend = legend.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "a cell is {}; {legend}", show_size(self.cell_bytes));
        text
    }
}

#[cfg(test)]
mod tests {
    use ubcache_daemon::served::maps::RangeCellReport;

    use super::*;

    fn volume() -> VolumeMapReport {
        let cell = |cached_bytes, dirty_bytes| RangeCellReport { cached_bytes, dirty_bytes };
        VolumeMapReport {
            volume: "a\nb".into(),
            size_bytes: 5 * 8192 + 4096,
            cell_bytes: 8192,
            cells: vec![
                cell(0, 0),
                cell(512, 0),
                cell(8192, 0),
                cell(8192, 512),
                cell(8192, 8192),
                cell(4096, 4096),
            ],
            ..VolumeMapReport::default()
        }
    }

    #[test]
    fn cells_differ_by_their_character_and_have_colours_where_they_are_wanted() {
        let strip = Strip::of_volume(&volume());
        let text = strip.text(false);
        assert!(text.contains(".cCdDD\n") && text.starts_with("a\\nb: "), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(strip.text(true).contains("\x1b[1;33mDD\x1b[0m"));
    }

    #[test]
    fn buckets_show_what_an_operator_has_to_know_first() {
        let cell = |free, clean, dirty, put_aside| BucketCellReport {
            free,
            clean,
            dirty,
            put_aside,
            ..BucketCellReport::default()
        };
        let cells = vec![
            cell(4, 0, 0, 0),
            cell(3, 1, 0, 0),
            cell(0, 4, 0, 0),
            cell(1, 2, 1, 0),
            cell(0, 0, 4, 0),
            cell(1, 1, 1, 1),
        ];
        let map = BucketsReport { cells, ..BucketsReport::default() };
        let text = Strip::of_buckets(&map).text(false);
        assert!(text.contains(".cCdDx\n"), "{text}");
    }
}
