//! Events to a tree: aliases and merge keys resolved, everything bounded.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{Entry, Node, Scalar, Value};
use crate::finding::Pos;

/// User-data is kilobytes. More than this is an alias bomb, not a config.
const MAX_NODES: usize = 200_000;
/// Each costs another look at the whole text.
const MAX_TABS: usize = 100;
/// The tree is walked recursively.
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub(crate) struct SyntaxError {
    pub(crate) pos: Pos,
    pub(crate) message: String,
}

impl SyntaxError {
    fn new(pos: Pos, message: impl Into<String>) -> Self {
        Self {
            pos,
            message: message.into(),
        }
    }
}

/// The first document of `text`; `None` when it is empty. Further documents are not looked at,
/// like the original.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    check_characters(text)?;
    let mut text = Cow::Borrowed(text);
    // `key:<tab>value` is fine with libyaml, and old configs have it; the scanner here wants a space.
    // Its complaint points behind the tab, so exactly that one is replaced.
    for _ in 0..MAX_TABS {
        match parse_document(&text) {
            Err(error) if error.message.starts_with("':' must be followed by a valid") => {
                match without_tab_before(&text, error.pos) {
                    Some(better) => text = Cow::Owned(better),
                    None => return Err(error),
                }
            }
            other => return other,
        }
    }
    parse_document(&text)
}

fn without_tab_before(text: &str, pos: Pos) -> Option<String> {
    let line_start: usize = text
        .split_inclusive('\n')
        .take(pos.line - 1)
        .map(str::len)
        .sum();
    let (index, c) = text[line_start..]
        .char_indices()
        .nth(pos.column.checked_sub(2)?)?;
    let at = line_start + index;
    (c == '\t').then(|| format!("{} {}", &text[..at], &text[at + 1..]))
}

fn parse_document(text: &str) -> Result<Option<Node>, SyntaxError> {
    // Blanks at the very end are no line; the scanner would make one of them in a block scalar.
    let text = text.trim_end_matches([' ', '\t']);
    let last_line = text.rsplit(['\n', '\r']).next().unwrap_or_default();
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        length: text.chars().count(),
        lines: text.lines().collect(),
        last_line: last_line.trim_start(),
        anchors: HashMap::new(),
        nodes: 0,
    };
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok(None),
            event => {
                let node = builder.node(event, span, 0)?;
                return Ok(Some(node).filter(|node| !node.is_null()));
            }
        }
    }
}

/// YAML's printable set; a scanner that lets a NUL through would put it into a file name.
fn check_characters(text: &str) -> Result<(), SyntaxError> {
    for (index, line) in text.split('\n').enumerate() {
        let bad = line.chars().position(|c| {
            c.is_control() && !matches!(c, '\t' | '\r' | '\u{85}')
                || c == '\u{fffe}'
                || c == '\u{ffff}'
        });
        if let Some(column) = bad {
            let pos = Pos {
                line: index + 1,
                column: column + 1,
            };
            return Err(SyntaxError::new(pos, "control characters are not allowed"));
        }
    }
    Ok(())
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// In characters.
    length: usize,
    lines: Vec<&'a str>,
    /// What follows the last line break, without indentation.
    last_line: &'a str,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(scan_error(&error)),
            None => Err(SyntaxError::new(Pos::START, "the document ends too early")),
        }
    }

    fn count(&mut self, pos: Pos, nodes: usize) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => Err(SyntaxError::new(
                pos,
                format!("more than {MAX_NODES} values (aliases included)"),
            )),
            false => Ok(()),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        let pos = position(span.start);
        if depth > MAX_DEPTH {
            return Err(SyntaxError::new(
                pos,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.count(pos, 1)?;
        let (anchor, value) = match event {
            Event::Scalar(raw, style, anchor, tag) => {
                let (plain, binary) = kind(style, tag.as_deref());
                let mut raw = raw.into_owned();
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
                    self.unfinished_line(&mut raw, span);
                }
                (anchor, Value::Scalar(Scalar { raw, plain, binary }))
            }
            Event::SequenceStart(anchor, _) => (anchor, self.sequence(depth, self.is_flow(pos))?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth, self.is_flow(pos))?),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(SyntaxError::new(pos, "an alias inside its own anchor"));
                };
                self.count(pos, size(&node))?;
                return Ok(node);
            }
            other => return Err(SyntaxError::new(pos, format!("unexpected {other:?}"))),
        };
        let node = Node { pos, value };
        if anchor > 0 {
            self.count(pos, size(&node))?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// A block scalar whose last line is the file's, with no line break behind it, has none either:
    /// libyaml reads it so, and the original with it. The scanner here adds one.
    fn unfinished_line(&self, raw: &mut String, span: Span) {
        let at_end = span.end.index() >= self.length && !self.last_line.is_empty();
        if at_end
            && raw
                .strip_suffix('\n')
                .is_some_and(|r| r.ends_with(self.last_line))
        {
            raw.pop();
        }
    }

    /// Whether the collection that starts here is written with brackets.
    fn is_flow(&self, pos: Pos) -> bool {
        let line = self.lines.get(pos.line - 1);
        let start = line.and_then(|line| line.chars().nth(pos.column - 1));
        matches!(start, Some('[' | '{'))
    }

    /// YAML forbids tabs as indentation; the scanner here lets some of them pass.
    fn check_indentation(&self, pos: Pos) -> Result<(), SyntaxError> {
        let line = self.lines.get(pos.line - 1).copied().unwrap_or_default();
        let blank = line.chars().take_while(|c| c.is_whitespace());
        match blank.into_iter().position(|c| c == '\t') {
            Some(column) => {
                let pos = Pos {
                    column: column + 1,
                    ..pos
                };
                Err(SyntaxError::new(pos, "a tab cannot indent; use spaces"))
            }
            None => Ok(()),
        }
    }

    fn sequence(&mut self, depth: usize, flow: bool) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Seq(items)),
                (event, span) => {
                    let item = self.node(event, span, depth + 1)?;
                    if !flow {
                        self.check_indentation(position(span.start))?;
                    }
                    items.push(item);
                }
            }
        }
    }

    fn mapping(&mut self, depth: usize, flow: bool) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Map(entries));
            }
            let key = self.node(event, span, depth + 1)?;
            if !flow {
                self.check_indentation(key.pos)?;
            }
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            let Value::Scalar(scalar) = key.value else {
                let message = format!("a key must be a single value, not {}", key.kind());
                return Err(SyntaxError::new(key.pos, message));
            };
            if scalar.plain && scalar.raw == "<<" {
                merge(node, &mut entries)?;
                continue;
            }
            entries.push(Entry {
                pos: key.pos,
                key: scalar.raw,
                node,
                merged: false,
            });
        }
    }
}

/// `<<: *defaults` or `<<: [*a, *b]`, where the earlier of several wins. Entries are taken where
/// the merge key stands and later ones override them, as in the original.
fn merge(node: Node, entries: &mut Vec<Entry>) -> Result<(), SyntaxError> {
    match node.value {
        Value::Map(merged) => {
            entries.extend(merged.into_iter().map(|e| Entry { merged: true, ..e }));
            Ok(())
        }
        Value::Seq(items) => items
            .into_iter()
            .rev()
            .try_for_each(|item| match item.value {
                Value::Map(_) => merge(item, entries),
                _ => Err(SyntaxError::new(item.pos, "`<<` merges mappings only")),
            }),
        Value::Scalar(_) => Err(SyntaxError::new(node.pos, "`<<` merges mappings only")),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::Seq(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|e| size(&e.node)).sum(),
    }
}

fn kind(style: ScalarStyle, tag: Option<&Tag>) -> (bool, bool) {
    let core = tag.filter(|tag| tag.is_yaml_core_schema());
    let binary = core.is_some_and(|tag| tag.suffix == "binary");
    let string = core.is_some_and(|tag| tag.suffix == "str");
    (style == ScalarStyle::Plain && !string && !binary, binary)
}

fn position(marker: Marker) -> Pos {
    Pos {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

fn scan_error(error: &ScanError) -> SyntaxError {
    SyntaxError::new(position(*error.marker()), error.info())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree on one line: `{key@line:column=value}`.
    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar(scalar) if scalar.plain => scalar.raw.clone(),
            Value::Scalar(scalar) => format!("{:?}", scalar.raw),
            Value::Seq(items) => {
                let items: Vec<String> = items.iter().map(show).collect();
                format!("[{}]", items.join(" "))
            }
            Value::Map(entries) => {
                let entry = |e: &Entry| format!("{}@{}={}", e.key, e.pos, show(&e.node));
                let entries: Vec<String> = entries.iter().map(entry).collect();
                format!("{{{}}}", entries.join(" "))
            }
        }
    }

    fn check(text: &str, expect: &str) {
        let shown = match parse(text) {
            Ok(Some(node)) => show(&node),
            Ok(None) => "nothing".to_owned(),
            Err(error) => format!("{}: {error}", error.pos),
        };
        assert_eq!(shown, expect, "{text:?}");
    }

    #[test]
    fn scalars_stay_as_written() {
        check("#cloud-config\n", "nothing");
        check("#cloud-config\n---\n---\na: 1\n", "nothing");
        check(
            "#x\n---\nmode: 0644\noff: off\n",
            "{mode@3:1=0644 off@4:1=off}",
        );
        check("a: '0644'\r\nb: yes\r\n", "{a@1:1=\"0644\" b@2:1=yes}");
        check("a: !!str 1\nb: ~\n", "{a@1:1=\"1\" b@2:1=~}");
        check("a: b\n...\nc: [\n", "{a@1:1=b}");
        check("\ta: b\n", "1:1: a tab cannot indent; use spaces");
        check("a:\n \tb: c\n", "2:2: a tab cannot indent; use spaces");
        check("f: |\n  \tx\n", "{f@1:1=\"\\tx\\n\"}");
    }

    #[test]
    fn block_scalars_end_as_libyaml_ends_them() {
        check("a: |\n  x\n", "{a@1:1=\"x\\n\"}");
        check("a: |\n  x", "{a@1:1=\"x\"}");
        check("a: |\n  x\n  ", "{a@1:1=\"x\\n\"}");
        check("a: |+\n  x\n\n", "{a@1:1=\"x\\n\\n\"}");
        check("a: |-\n  x", "{a@1:1=\"x\"}");
        check("a: |\r\n  x\r\n  y\r\n", "{a@1:1=\"x\\ny\\n\"}");
        check("a: |\n  x\n\n\nb: |\n  x", "{a@1:1=\"x\\n\" b@5:1=\"x\"}");
        check("a: >\n  x\n  y", "{a@1:1=\"x y\"}");
        check("- |\n  x\n# x", "[\"x\\n\"]");
    }

    #[test]
    fn aliases_and_merge_keys() {
        check("a: &x [1, 2]\nb: *x\n", "{a@1:1=[1 2] b@2:1=[1 2]}");
        check(
            "a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  p: 3\n",
            "{a@1:1={p@1:8=1 q@1:14=2} b@2:1={p@1:8=1 q@1:14=2 p@4:3=3}}",
        );
        check("<<: [1]\n", "1:6: `<<` merges mappings only");
        check("a: &x [*x]\n", "1:8: an alias inside its own anchor");
        check("a: *x\n", "1:4: while parsing node, found unknown anchor");
    }

    #[test]
    fn a_bomb_and_a_tower_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let before = format!("*a{}", n - 1);
            bomb += &format!("a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", "));
        }
        let error = parse(&bomb).unwrap_err();
        assert!(error.message.starts_with("more than"), "{error}");
        let error = parse(&("[".repeat(100) + &"]".repeat(100))).unwrap_err();
        assert_eq!(error.message, "nested deeper than 64 levels");
        let error = parse("a: b\nc: \u{0}\n").unwrap_err();
        assert_eq!((error.pos.line, error.pos.column), (2, 4));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-a: \n\"'|>&*\\[\\]{},#%@!\\t\u{e9}\\\\]{0,80}") {
            let _ = parse(&text);
        }
    }
}
