//! A counterexample as a numbered timeline, in the notation of docs/internals/coherence.md.

use std::fmt::Write as _;

use crate::monitor::name;
use crate::search::{Counterexample, replay};
use crate::state::{Key, State};
use crate::step::Model;

fn key(state: &State, key: Key) -> String {
    match key.place() {
        None => "–".to_owned(),
        Some(place) => {
            let kind = if key.is_dirty() { "dirty" } else { "clean" };
            format!("{kind} {}", name(state.places[usize::from(place)].live))
        }
    }
}

fn index(state: &State, sectors: usize) -> String {
    let one = |sector: usize| match state.copy(sector) {
        Some(place) => format!("copy {}", name(state.places[usize::from(place)].live)),
        None => key(state, state.index[sector]),
    };
    (0..sectors).map(one).collect::<Vec<_>>().join(" | ")
}

fn journal(state: &State, sectors: usize) -> String {
    let one = |sector: usize| {
        let mut text = key(state, state.durable[sector]);
        for record in state.records.iter().filter(|record| usize::from(record.sector) == sector) {
            let _ = match record.key {
                Key::NONE => write!(text, " > removed"),
                other => write!(text, " > {}", key(state, other)),
            };
        }
        text
    };
    (0..sectors).map(one).collect::<Vec<_>>().join(" | ")
}

fn disk(state: &State, sectors: usize) -> String {
    let one = |sector: usize| {
        let disk = &state.disk[sector];
        let mut text = name(disk.durable);
        disk.versions.iter().for_each(|version| {
            let _ = write!(text, " > {}", name(version.value));
        });
        if let Some(value) = disk.phantom() {
            let _ = write!(text, " (reads: {})", name(value));
        }
        text
    };
    (0..sectors).map(one).collect::<Vec<_>>().join(" | ")
}

/// The steps, one a row: number, what happens, index, journal, backing device.
pub fn timeline(model: &Model, example: &Counterexample) -> String {
    let (start, run) = replay(model, example);
    let mut rows =
        vec![["".to_owned(), "start".to_owned(), String::new(), String::new(), String::new()]];
    let fill = |row: &mut [String; 5], state: &State| {
        row[2] = index(state, model.sectors);
        row[3] = journal(state, model.sectors);
        row[4] = disk(state, model.sectors);
    };
    fill(&mut rows[0], &start);
    for (number, (action, state)) in (1..).zip(&run) {
        let mut row: [String; 5] = Default::default();
        (row[0], row[1]) = (format!("{number}"), action.to_string());
        fill(&mut row, state);
        rows.push(row);
    }
    let head = ["", "step", "index", "journal", "backing device"].map(str::to_owned);
    rows.insert(0, head);
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell}{}  ", " ".repeat(width - cell.chars().count()));
        }
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    let _ = writeln!(text, "  {}: {}", example.kind.name(), example.what);
    text
}
