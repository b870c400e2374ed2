//! Manual pages of file formats, from the documents that describe them.

use std::fmt::Write;
use std::path::Path;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A document, the page that it becomes, its section, and its line in `apropos`.
const PAGES: &[(&str, &str, u8, &str)] = &[
    (
        "docs/reference/config.md",
        "ubcache.toml",
        5,
        "configuration of the sets that ubcached serves",
    ),
    ("docs/reference/attributes.md", "ubcache-attributes", 7, "attributes of sets and volumes"),
    ("docs/reference/metrics.md", "ubcache-metrics", 7, "numbers of ubcache for Prometheus"),
    ("docs/reference/errors.md", "ubcache-errors", 7, "exit codes and error messages of ubcache"),
];

/// Writes all of them into a directory.
pub fn write(directory: &Path, version: &str, date: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (document, name, section, line) in PAGES {
        let text = std::fs::read_to_string(document)?;
        let title = name.to_uppercase();
        let head = format!(
            ".TH {title} {section} {date} \"ubcache {version}\"\n.SH NAME\n{} \\- {line}\n",
            escaped(name)
        );
        let tail = ".SH SEE ALSO\n.BR ubcache (1)\n";
        let page = format!("{head}{}{tail}", roff(&text));
        std::fs::write(directory.join(format!("{name}.{section}")), page)?;
    }
    Ok(())
}

/// Form of the text that is being written.
#[derive(Default)]
struct Page {
    out: String,
    /// Text of a paragraph, heading or cell, until that ends.
    line: String,
    /// Cells of a row of a table.
    cells: Vec<String>,
    in_code: bool,
    in_item: bool,
    is_fresh_section: bool,
}

fn roff(markdown: &str) -> String {
    let mut page = Page::default();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.add(event);
    }
    page.out
}

impl Page {
    fn add(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => self.in_code = true,
            Event::Start(Tag::Item) => self.in_item = true,
            Event::Start(Tag::Strong) => self.line += "\\fB",
            Event::Start(Tag::Emphasis) => self.line += "\\fI",
            Event::End(TagEnd::Strong | TagEnd::Emphasis) => self.line += "\\fR",
            Event::Text(text) => self.line += &escaped(&text),
            Event::Code(text) => {
                let _ = write!(self.line, "\\fB{}\\fR", escaped(&text));
            }
            Event::SoftBreak | Event::HardBreak => self.line.push(' '),
            Event::End(TagEnd::Heading(level)) => self.heading(level),
            Event::End(TagEnd::Paragraph) => self.paragraph(),
            Event::End(TagEnd::Item) => {
                self.paragraph();
                self.in_item = false;
            }
            Event::End(TagEnd::CodeBlock) => {
                let code = std::mem::take(&mut self.line);
                self.in_code = false;
                self.begin_paragraph();
                let _ = write!(self.out, ".nf\n{}\n.fi\n", protected(code.trim_end()));
            }
            Event::End(TagEnd::TableCell) => self.cells.push(std::mem::take(&mut self.line)),
            // The names of the columns.
            Event::End(TagEnd::TableHead) => self.cells.clear(),
            Event::End(TagEnd::TableRow) => self.row(),
            _ => {}
        }
    }

    fn heading(&mut self, level: HeadingLevel) {
        let title = std::mem::take(&mut self.line).replace("\\fB", "").replace("\\fR", "");
        let (word, title) = match level {
            HeadingLevel::H1 => ("SH", "DESCRIPTION".to_owned()),
            HeadingLevel::H2 => ("SH", title.to_uppercase()),
            _ => ("SS", title),
        };
        let _ = writeln!(self.out, ".{word} {title}");
        self.is_fresh_section = true;
    }

    /// Begins a paragraph; the first of a section is one already.
    fn begin_paragraph(&mut self) {
        if !std::mem::take(&mut self.is_fresh_section) {
            self.out += ".PP\n";
        }
    }

    fn paragraph(&mut self) {
        let text = std::mem::take(&mut self.line);
        if text.trim().is_empty() {
            return;
        }
        if self.in_item {
            self.is_fresh_section = false;
            let _ = writeln!(self.out, ".IP * 2\n{}", protected(text.trim()));
        } else {
            self.begin_paragraph();
            let _ = writeln!(self.out, "{}", protected(text.trim()));
        }
    }

    /// A row is a paragraph under its first cell.
    fn row(&mut self) {
        let cells = std::mem::take(&mut self.cells);
        let Some((first, rest)) = cells.split_first() else { return };
        self.is_fresh_section = false;
        let rest: Vec<&str> =
            rest.iter().map(|cell| cell.trim()).filter(|cell| !cell.is_empty()).collect();
        let (first, rest) = (protected(first.trim()), protected(&rest.join("; ")));
        let _ = writeln!(self.out, ".TP\n{first}\n{rest}");
    }
}

/// Characters as roff wants them.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Lines of which none is taken for a command.
fn protected(text: &str) -> String {
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
