//! Tables as kubectl prints them: upper-case titles, columns three spaces apart, nothing behind the last.

/// Lines of cells under titles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new(titles: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            titles: titles.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a line; an empty cell reads `<none>`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| {
            // What comes from a cluster may not move the cursor.
            let cell: String = cell.chars().filter(|c| !c.is_control()).collect();
            if cell.is_empty() {
                "<none>".to_owned()
            } else {
                cell
            }
        });
        self.rows.push(cells.collect());
    }

    /// The text, with a line end behind each line.
    pub fn render(&self) -> String {
        let titles: Vec<String> = self
            .titles
            .iter()
            .map(|title| (*title).to_owned())
            .collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let widths: Vec<usize> = (0..titles.len())
            .map(|at| {
                lines()
                    .filter_map(|line| line.get(at))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for line in lines() {
            let mut padding = 0;
            for (cell, width) in line.iter().zip(&widths) {
                text.extend(std::iter::repeat_n(' ', padding));
                text.push_str(cell);
                padding = width - cell.chars().count() + GAP;
            }
            text.push('\n');
        }
        text
    }
}

const GAP: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "STATUS", "SINCE"]);
        table.row(["a", "Connected", "5m"].map(str::to_owned));
        table.row(["größer", "", "\u{1b}[31m1d"].map(str::to_owned));
        assert_eq!(
            table.render(),
            "NAME     STATUS      SINCE\n\
             a        Connected   5m\n\
             größer   <none>      [31m1d\n"
        );
    }
}
