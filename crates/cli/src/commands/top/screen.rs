//! The table in a terminal, and its keys.

use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as TableRow, Table};
use ubcache_daemon::Failure;

use super::rows::{Column, Row, sort};
use super::{HEADERS, Looks, cells, widths};

/// Column by which each header sorts.
const SORTED: [Option<Column>; HEADERS.len()] = [
    Some(Column::Name),
    None,
    Some(Column::Read),
    None,
    Some(Column::Written),
    None,
    Some(Column::Hits),
    None,
    Some(Column::ReadLatency),
    Some(Column::WriteLatency),
    Some(Column::Dirty),
];
const HELP: &str =
    "sort: n name, r read, w written, h hits, l read latency, k write latency, d dirty; q: quit";

struct Shown {
    rows: Vec<Row>,
    by: Column,
    reversed: bool,
    /// Reason why there are no news.
    failure: Option<String>,
}

/// Shows the table until a key ends it.
pub(super) fn run(looks: &mut Looks<'_>, interval: Duration) -> Result<(), Failure> {
    let mut terminal = ratatui::try_init().map_err(|error| broken(&error))?;
    let result = show(&mut terminal, looks, interval);
    ratatui::restore();
    result
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    looks: &mut Looks<'_>,
    interval: Duration,
) -> Result<(), Failure> {
    let rows = looks.next()?;
    let mut shown = Shown { rows, by: Column::Name, reversed: false, failure: None };
    let mut due = Instant::now() + interval;
    loop {
        sort(&mut shown.rows, shown.by, shown.reversed);
        terminal.draw(|frame| draw(frame, &shown)).map_err(|error| broken(&error))?;
        let left = due.saturating_duration_since(Instant::now());
        if event::poll(left).map_err(|error| broken(&error))? {
            let event = event::read().map_err(|error| broken(&error))?;
            if !shown.takes(&event) {
                return Ok(());
            }
            continue;
        }
        due = Instant::now() + interval;
        match looks.next() {
            Ok(rows) => {
                shown.rows = rows;
                shown.failure = None;
            }
            Err(failure) => shown.failure = Some(failure.to_string()),
        }
    }
}

fn broken(error: &std::io::Error) -> Failure {
    Failure::could_not_run(Path::new("the terminal"), error)
        .advice("print one table with `ubcache top --once`")
}

impl Shown {
    /// Takes a key; false: it ends the command.
    fn takes(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return true };
        if key.kind != KeyEventKind::Press {
            return true;
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char(pressed) => {
                let found = Column::ALL.iter().find(|(_, key)| *key == pressed);
                if let Some((column, _)) = found {
                    self.reversed = *column == self.by && !self.reversed;
                    self.by = *column;
                }
            }
            _ => {}
        }
        true
    }
}

fn draw(frame: &mut Frame<'_>, shown: &Shown) {
    let areas = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]);
    let [above, below] = areas.areas(frame.area());
    let headers = HEADERS.iter().zip(SORTED).map(|(header, column)| {
        let sorts = column == Some(shown.by);
        let style = if sorts { Modifier::REVERSED } else { Modifier::BOLD };
        Cell::from(*header).style(Style::new().add_modifier(style))
    });
    let rows = shown.rows.iter().map(|row| TableRow::new(cells(row)));
    let widths = widths(&shown.rows).map(|width| Constraint::Length(width as u16));
    let table = Table::new(rows, widths).header(TableRow::new(headers)).column_spacing(2);
    frame.render_widget(table, above);
    let foot = shown.failure.as_deref().map_or(HELP, |why| why.lines().next().unwrap_or(HELP));
    frame.render_widget(Line::from(foot), below);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn shown() -> Shown {
        let row =
            |name: &str, dirty_bytes| Row { name: name.into(), dirty_bytes, ..Row::default() };
        let rows = vec![row("first", 1), row("second", 1 << 20)];
        Shown { rows, by: Column::Name, reversed: false, failure: None }
    }

    fn lines(shown: &mut Shown) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(130, 6)).expect("a terminal");
        sort(&mut shown.rows, shown.by, shown.reversed);
        terminal.draw(|frame| draw(frame, shown)).expect("it draws");
        let buffer = terminal.backend().buffer().clone();
        let width = usize::from(buffer.area.width);
        let symbols: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
        symbols.chunks(width).map(|line| line.concat().trim_end().to_owned()).collect()
    }

    #[test]
    fn keys_sort_and_end() {
        let mut shown = shown();
        let press = |shown: &mut Shown, key: char| {
            shown.takes(&Event::Key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE)))
        };
        assert!(lines(&mut shown)[1].starts_with("first"));
        assert!(press(&mut shown, 'd'));
        assert!(lines(&mut shown)[1].starts_with("second"));
        assert!(press(&mut shown, 'd'));
        assert!(lines(&mut shown)[1].starts_with("first"), "the order is reversed");
        assert!(press(&mut shown, 'x'), "other keys do nothing");
        assert!(!press(&mut shown, 'q'));
        assert!(lines(&mut shown)[5].contains("q: quit"));
    }

    #[test]
    fn failure_is_shown_below_the_last_rows() {
        let mut shown = shown();
        shown.failure = Some("no daemon answers\nstart one".into());
        let lines = lines(&mut shown);
        assert_eq!(lines[5], "no daemon answers");
        assert!(lines[2].starts_with("second"));
    }
}
