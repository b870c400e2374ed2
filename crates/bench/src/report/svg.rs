//! A picture of a replay: read hit ratio over cache size.

use std::fmt::Write;

use super::{Replay, size};
use crate::BLOCK_BYTES;

const LEFT: f64 = 64.0;
const TOP: f64 = 48.0;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// Names of curves below the picture: so wide, so high, so many in a row.
const NAME_WIDTH: f64 = 200.0;
const NAME_HEIGHT: f64 = 18.0;
const NAMES_IN_ROW: usize = 3;

const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];

struct Curve {
    name: String,
    /// Blocks of the cache, and the share of reads that hit.
    points: Vec<(u64, f64)>,
}

/// Draws a replay.
pub fn svg(replay: &Replay) -> String {
    let curves = curves(replay);
    let most = replay.rows.iter().map(|row| row.cache_blocks).max().unwrap_or(1).max(1) as f64;
    let names_height = NAME_HEIGHT * curves.len().div_ceil(NAMES_IN_ROW) as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} \
         {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}: share of reads answered by the \
         cache</text>\n",
        LEFT + WIDTH + 24.0,
        TOP + HEIGHT + 38.0 + names_height,
        escape(&replay.trace)
    );
    draw_axes(&mut text, most);
    for (index, curve) in curves.iter().enumerate() {
        draw_curve(&mut text, index, curve, most);
    }
    text.push_str("</svg>\n");
    text
}

fn curves(replay: &Replay) -> Vec<Curve> {
    let rows = &replay.rows;
    let lru = rows.iter().map(|row| (row.cache_blocks, row.lru)).collect();
    let buckets = rows.iter().filter_map(|row| Some((row.cache_blocks, row.bucket_hits()?)));
    let mut curves = vec![
        Curve { name: "LRU of 4 KiB blocks".to_owned(), points: lru },
        Curve { name: "LRU of buckets".to_owned(), points: buckets.collect() },
    ];
    let policies = rows.first().map_or(0, |row| row.engine.len());
    for index in 0..policies {
        let of = |row: &super::Row| (row.cache_blocks, row.engine[index].counts.hit_ratio());
        curves.push(Curve {
            name: format!("engine, {}", rows[0].engine[index].policy),
            points: rows.iter().map(of).collect(),
        });
    }
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

fn y_of(share: f64) -> f64 {
    TOP + HEIGHT * (1.0 - share)
}

fn draw_axes(text: &mut String, most: f64) {
    for fifth in 0..=5 {
        let share = f64::from(fifth) / 5.0;
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{4:.0}%</text>\
             <text x=\"{5:.1}\" y=\"{6}\" text-anchor=\"middle\">{7}</text>",
            y_of(share),
            LEFT + WIDTH,
            LEFT - 8.0,
            y_of(share) + 4.0,
            share * 100.0,
            LEFT + WIDTH * share,
            TOP + HEIGHT + 20.0,
            size(most * share * BLOCK_BYTES as f64)
        );
    }
}

fn draw_curve(text: &mut String, index: usize, curve: &Curve, most: f64) {
    let colour = COLOURS[index % COLOURS.len()];
    let x = |blocks: u64| LEFT + WIDTH * blocks as f64 / most;
    let points = curve.points.iter();
    let line: Vec<String> =
        points.map(|&(blocks, share)| format!("{:.1},{:.1}", x(blocks), y_of(share))).collect();
    let _ = writeln!(
        text,
        "<polyline points=\"{LEFT},{} \
         {}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
         <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
        TOP + HEIGHT,
        line.join(" "),
        LEFT + NAME_WIDTH * (index % NAMES_IN_ROW) as f64,
        TOP + HEIGHT + 44.0 + NAME_HEIGHT * (index / NAMES_IN_ROW) as f64,
        escape(&curve.name)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
