//! The words of a violation: what was seen, what was allowed, and the operations that led there.

use std::fmt::Write as _;

use ubcache_env::{Nanos, Sector, SectorRange};

use super::value::{Decoded, Value};
use super::{Op, Oracle, Violation};
use crate::executor::show_time;

/// Rows that a report shows at most.
const REPORT_ROWS: usize = 40;

/// One operation, or a note.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) client: u32,
    /// None: everything is concerned.
    pub(super) place: Option<(u32, SectorRange)>,
    pub(super) text: &'static str,
    pub(super) note: String,
    pub(super) begin: Nanos,
    pub(super) end: Option<(Nanos, String)>,
}

impl Oracle {
    /// The operations under way, for reports of what hangs.
    pub fn under_way(&self) -> String {
        let mut text = String::new();
        for (id, row) in
            (0_u64..).zip(&self.rows).filter(|(_, row)| row.text != "note" && row.end.is_none())
        {
            let _ = writeln!(text, "{}", self.show_row(id, row));
        }
        text
    }

    /// Every row, for the verbose log.
    pub fn log(&self) -> impl Iterator<Item = String> + '_ {
        (0..).zip(&self.rows).map(|(id, row)| self.show_row(id, row))
    }

    pub(super) fn report_disks(
        &self,
        kind: &str,
        place: (u32, u64),
        seen: &Decoded,
        allowed: &[Value],
    ) -> Violation {
        let title =
            format!("{kind}: volume {} sector {}", self.volumes[place.0 as usize].name, place.1);
        Violation { kind: kind.to_owned(), report: self.report_sector(title, place, seen, allowed) }
    }

    pub(super) fn report_read(
        &self,
        op: &Op,
        sector: u64,
        seen: &Decoded,
    ) -> (&'static str, String) {
        let state = &self.volumes[op.volume as usize];
        let allowed = state.registers[sector as usize].allowed(op.began);
        let kind = match seen {
            Decoded::Value(_) => "a read returned what it must not",
            Decoded::Wrong(_) => "a read returned what nobody wrote",
        };
        let title = format!("{kind}: volume {} sector {sector}, op {}", state.name, op.id);
        (kind, self.report_sector(title, (op.volume, sector), seen, &allowed))
    }

    fn report_sector(
        &self,
        title: String,
        (of_volume, sector): (u32, u64),
        seen: &Decoded,
        allowed: &[Value],
    ) -> String {
        let seen = match seen {
            Decoded::Value(value) => self.describe(*value),
            Decoded::Wrong(text) => text.clone(),
        };
        let mut text = format!("{title}\n");
        let _ = writeln!(text, "  seen:    {seen}");
        for (index, value) in allowed.iter().enumerate() {
            let lead = if index == 0 { "allowed:" } else { "     or:" };
            let _ = writeln!(text, "  {lead} {}", self.describe(*value));
        }
        let _ = writeln!(text, "  the last operations on this sector:");
        let concerned: Vec<String> = (0..)
            .zip(&self.rows)
            .filter(|(_, row)| match row.place {
                None => true,
                Some((volume, range)) => volume == of_volume && range.contains(Sector(sector)),
            })
            .map(|(id, row)| self.show_row(id, row))
            .collect();
        for row in &concerned[concerned.len().saturating_sub(REPORT_ROWS)..] {
            let _ = writeln!(text, "{row}");
        }
        text
    }

    fn describe(&self, value: Value) -> String {
        match self.rows.get(value.0 as usize) {
            Some(row) if value != Value::ZERO => format!(
                "{value} ({} by client {}, begun at {})",
                row.text,
                row.client,
                show_time(row.begin.0)
            ),
            _ => value.to_string(),
        }
    }

    fn show_row(&self, id: u64, row: &Row) -> String {
        let begin = show_time(row.begin.0);
        if row.text == "note" {
            return format!("  {begin:>16}  ──────  {}", row.note);
        }
        let place = row.place.map_or_else(String::new, |(volume, range)| {
            format!("{} {range}", self.volumes[volume as usize].name)
        });
        let end = match &row.end {
            Some((at, outcome)) => format!("→ {} {outcome}", show_time(at.0)),
            None => "→ no reply".to_owned(),
        };
        format!(
            "  {begin:>16}  op {id:<5} client {:<2} {:<10} {place:<20} {end}",
            row.client, row.text
        )
    }
}
