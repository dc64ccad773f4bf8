//! Line by line, what a change does to a file.

/// Lines of either side up to which lines are matched; longer texts are shown as replaced whole.
const MAX_LINES: usize = 1000;

/// Each line with ` `, `-` or `+` before it.
pub(super) fn lines(before: &str, after: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut out = String::new();
    let mut put = |sign: char, line: &str| {
        out.push(sign);
        out.push_str(line);
        out.push('\n');
    };
    if a.len() > MAX_LINES || b.len() > MAX_LINES {
        a.iter().for_each(|line| put('-', line));
        b.iter().for_each(|line| put('+', line));
        return out;
    }
    let common = common(&a, &b);
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            put(' ', a[i]);
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || common[i + 1][j] >= common[i][j + 1]) {
            put('-', a[i]);
            i += 1;
        } else {
            put('+', b[j]);
            j += 1;
        }
    }
    out
}

/// The length of the longest common subsequence of each pair of tails.
fn common(a: &[&str], b: &[&str]) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            table[i][j] =
                if a[i] == b[j] { table[i + 1][j + 1] + 1 } else { table[i + 1][j].max(table[i][j + 1]) };
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_goes_and_what_comes() {
        let check = |before: &str, after: &str, expected: &str| assert_eq!(lines(before, after), expected);
        check("", "", "");
        check("a\nb\nc\n", "a\nx\nc\n", " a\n-b\n+x\n c\n");
        check("", "a\n", "+a\n");
        check("a\n", "", "-a\n");
        check("a\nb\n", "b\nc\n", "-a\n b\n+c\n");
        let long = "x\n".repeat(MAX_LINES + 1);
        assert_eq!(lines(&long, "y\n").lines().count(), MAX_LINES + 2);
    }
}
