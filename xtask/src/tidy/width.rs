//! Two files fit side by side on a screen: lines end at column 100.

use super::{Finding, Source};

const COLUMNS_MAX: usize = 100;

pub fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(of_source).collect()
}

fn of_source(source: &Source) -> Vec<Finding> {
    let mut fenced = false;
    let mut findings = Vec::new();
    for (line, number) in source.text.lines().zip(1..) {
        let prose = prose_of(source, line);
        let is_fence = prose.is_some_and(|prose| prose.trim_start().starts_with("```"));
        fenced = (fenced ^ is_fence) && prose.is_some();
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !prose.is_some_and(|prose| is_exempt(prose, fenced || is_fence))
        {
            findings
                .push(source.finding(number, format!("{columns} columns, {COLUMNS_MAX} at most")));
        }
    }
    findings
}

/// The text of a line, if it is prose: in documents and in comments.
fn prose_of<'a>(source: &Source, line: &'a str) -> Option<&'a str> {
    match source.is_document() {
        true => Some(line),
        false => {
            line.trim_start().strip_prefix("//").map(|text| text.trim_start_matches(['/', '!']))
        }
    }
}

/// Tables, drawings, output of programs, and a link that can't be broken may be wider.
fn is_exempt(line: &str, fenced: bool) -> bool {
    fenced || line.trim_start().starts_with('|') || !line.trim().contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, line: &str) -> usize {
        of_source(&Source { path: path.to_owned(), text: format!("{line}\n") }).len()
    }

    #[test]
    fn wide_lines_outside_tables_are_found() {
        let words = "ä ".repeat(51);
        assert_eq!((findings("a.md", &words), findings("a.rs", &words)), (1, 1));
        assert_eq!(findings("a.md", &format!("| {words}")), 0);
        assert_eq!(findings("a.rs", &format!("//! | {words}")), 0);
        assert_eq!(findings("a.rs", &format!("/// ```text\n/// {words}\n/// ```\n{words}")), 1);
        assert_eq!(findings("a.md", &"ä ".repeat(50)), 0);
        assert_eq!(findings("a.md", &format!("```\n{words}\n```")), 0);
        assert_eq!(findings("a.md", &format!("```\n{words}\n```\n{words}")), 1);
    }
}
