//! The cells of a map as a picture in SVG.

use std::fmt::Write as _;

use ubcache_daemon::size::show_size;

use super::strip::{Kind, Strip};

/// Cells in a row.
const ROW: usize = 64;
/// Width and height of a cell.
const CELL: usize = 10;
const MARGIN: usize = 16;

/// The picture. Dirty cells are hatched as well, for those who do not tell the colours apart.
pub(super) fn svg(strip: &Strip) -> String {
    let rows = strip.cells.len().div_ceil(ROW);
    let top = MARGIN + 32;
    let below = top + rows * CELL + 24;
    let (width, height) = (2 * MARGIN + ROW * CELL, below + 20 * strip.legend.len() + MARGIN);
    let title = escape(&strip.title);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n<title>{title}</title>\n\
         <defs><pattern id=\"hatch\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">\
         <path d=\"M0,4L4,0\" stroke=\"#000\" stroke-width=\"0.8\"/></pattern></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{}\" font-size=\"14\">{title}</text>\n\
         <text x=\"{MARGIN}\" y=\"{}\" fill=\"#555\">a cell is {}, a row {}</text>\n",
        MARGIN + 6,
        MARGIN + 24,
        show_size(strip.cell_bytes),
        show_size(strip.cell_bytes * ROW as u64)
    );
    for (row, cells) in strip.cells.chunks(ROW).enumerate() {
        let mut column = 0;
        for same in cells.chunk_by(|one, other| one == other) {
            let at = (MARGIN + column * CELL, top + row * CELL);
            rectangle(&mut text, at, (same.len() * CELL, CELL), same[0]);
            column += same.len();
        }
    }
    for (index, (kind, words)) in strip.legend.iter().enumerate() {
        let y = below + 20 * index;
        rectangle(&mut text, (MARGIN, y), (CELL, CELL), *kind);
        let x = MARGIN + 2 * CELL;
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{}\">{words}</text>", y + CELL);
    }
    text.push_str("</svg>\n");
    text
}

fn rectangle(text: &mut String, (x, y): (usize, usize), size: (usize, usize), kind: Kind) {
    let (width, height) = size;
    let (_, _, colour) = kind.signs();
    let place = format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
    let _ = writeln!(text, "<rect {place} fill=\"{colour}\"/>");
    if matches!(kind, Kind::Dirty | Kind::PartlyDirty) {
        let _ = writeln!(text, "<rect {place} fill=\"url(#hatch)\"/>");
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
