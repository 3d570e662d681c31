//! A file of colon-separated lines: passwd(5) and its relatives. What we do not change stays as it is,
//! comments and NIS lines included.

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    lines: Vec<String>,
}

impl Table {
    pub(super) fn parse(text: &str) -> Self {
        Self {
            lines: text.lines().map(str::to_owned).collect(),
        }
    }

    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The fields of the line whose first field is `name`.
    pub(super) fn get(&self, name: &str) -> Option<Vec<&str>> {
        let line = self.lines.iter().find(|line| first(line) == name)?;
        Some(line.split(':').collect())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.lines.iter().any(|line| first(line) == name)
    }

    pub(super) fn push(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Changes field `index` of `name`; lines that are too short to have it are left alone.
    pub(super) fn set(&mut self, name: &str, index: usize, change: impl FnOnce(&str) -> String) {
        let Some(line) = self.lines.iter_mut().find(|line| first(line) == name) else {
            return;
        };
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if let Some(field) = fields.get_mut(index) {
            *field = change(field);
            *line = fields.join(":");
        }
    }

    /// A numeric field of every line.
    pub(super) fn numbers(&self, index: usize) -> impl Iterator<Item = u32> {
        self.lines
            .iter()
            .filter_map(move |line| line.split(':').nth(index)?.parse().ok())
    }

    /// The name of the line whose field `index` is `value`.
    pub(super) fn name_of(&self, index: usize, value: u32) -> Option<&str> {
        let value = value.to_string();
        let line = self
            .lines
            .iter()
            .find(|line| line.split(':').nth(index) == Some(&value))?;
        Some(first(line))
    }
}

fn first(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}
