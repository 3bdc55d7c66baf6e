//! The families of others, which come as Prometheus text 0.0.4.

use std::collections::HashSet;

use crate::text::Format;

/// One family in the text of others.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    samples: Vec<&'a str>,
}

/// Adds the families of `text` in `format`. One that has a name which is `taken`, or which one before it had, is left out.
pub(super) fn convert(out: &mut String, format: Format, text: &str, taken: &HashSet<String>) {
    out.reserve(text.len());
    let families: Vec<_> = families(text).into_iter().map(|family| (family.names(), family)).collect();
    let all: HashSet<&str> = families.iter().flat_map(|(names, _)| names).copied().collect();
    let is_free = |name: &str| !taken.contains(name) && !all.contains(name);
    let mut shown = HashSet::<&str>::new();
    for (names, family) in &families {
        if names.iter().any(|name| taken.contains(*name) || shown.contains(name)) {
            continue;
        }
        shown.extend(names);
        family.write(out, format, is_free);
    }
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    // Line ends within labels and HELP are escaped.
    for line in text.split('\n') {
        let keyword = ["# HELP ", "# TYPE "].into_iter().find(|keyword| line.starts_with(keyword));
        if let Some((keyword, rest)) = keyword.and_then(|keyword| Some((keyword, line.strip_prefix(keyword)?))) {
            let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
            if families.last().is_none_or(|family| family.name != name || !family.samples.is_empty()) {
                families.push(Family { name, kind: "untyped", help: "", samples: Vec::new() });
            }
            if let Some(family) = families.last_mut() {
                *(if keyword == "# HELP " { &mut family.help } else { &mut family.kind }) = value.trim();
            }
        } else if !line.is_empty()
            && !line.starts_with('#')
            && let Some(family) = families.last_mut()
        {
            family.samples.push(line);
        }
    }
    families
}

impl<'a> Family<'a> {
    /// The names of the family and of its samples.
    fn names(&self) -> HashSet<&'a str> {
        let samples = self.samples.iter().filter_map(|line| line.split(['{', ' ']).next());
        samples.chain([self.name]).collect()
    }

    fn write(&self, out: &mut String, format: Format, is_free: impl Fn(&str) -> bool) {
        let (name, kind) = match format {
            Format::Prometheus => (self.name, self.kind),
            Format::OpenMetrics => self.openmetrics(is_free),
        };
        out.extend(["# TYPE ", name, " ", kind, "\n"]);
        if !self.help.is_empty() {
            out.extend(["# HELP ", name, " "]);
            match format {
                Format::Prometheus => out.push_str(self.help),
                Format::OpenMetrics => out.push_str(&self.help.replace('"', "\\\"")),
            }
            out.push('\n');
        }
        for line in &self.samples {
            match (format, self.kind) {
                (Format::OpenMetrics, "summary") if self.is_sample(line, "") => with_point(out, line, "quantile=\""),
                (Format::OpenMetrics, "histogram") if self.is_sample(line, "_bucket") => with_point(out, line, "le=\""),
                _ => out.push_str(line),
            }
            out.push('\n');
        }
    }

    /// Whether a line has this family's name with `suffix`.
    fn is_sample(&self, line: &str, suffix: &str) -> bool {
        let rest = line.strip_prefix(self.name).and_then(|rest| rest.strip_prefix(suffix));
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    }

    /// Name and type in OpenMetrics. A counter that could not have its name there has no type: its samples keep theirs.
    fn openmetrics(&self, is_free: impl Fn(&str) -> bool) -> (&'a str, &'a str) {
        match self.kind {
            "counter" => match self.name.strip_suffix("_total") {
                Some(name) if is_free(name) => (name, self.kind),
                _ => (self.name, "unknown"),
            },
            "gauge" | "summary" | "histogram" => (self.name, self.kind),
            _ => (self.name, "unknown"),
        }
    }
}

/// A line with `.0` behind the whole number that is the value of a label: `quantile="1"` is not canonical.
fn with_point(out: &mut String, line: &str, label: &str) {
    let is_whole = |number: &str| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    // Quotes within other labels' values are escaped; other labels' names may end as this one does.
    let number = line.rmatch_indices(label).find_map(|(at, _)| {
        let is_label = line.get(..at)?.ends_with(['{', ',']);
        let found = line.get(at + label.len()..)?.split_once('"');
        found.filter(|(number, _)| is_label && is_whole(number))
    });
    let Some((number, rest)) = number else {
        return out.push_str(line);
    };
    let before = line.get(..line.len() - rest.len() - 1).unwrap_or_default();
    debug_assert!(before.ends_with(number), "{line}");
    out.extend([before, ".0\"", rest]);
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use super::*;

    #[test]
    fn only_bounds_and_quantiles_get_a_point() {
        let text = r#"# TYPE h histogram
h_bucket{table="42",le="1"} 1
h_bucket{le="2",table="42",v="x,le="} 1
h_bucket{role="7",le="+Inf"} 1
h_sum{table="42",module="0",role="1"} 3
h_count{file="42",v="{le="} 1
# TYPE s summary
s{my_quantile="3",quantile="1"} 1
s{my_quantile="3",quantile="0.5"} 1
s_sum{my_quantile="1"} 1
s_count{my_quantile="1"} 1
"#;
        let mut out = String::new();
        convert(&mut out, Format::OpenMetrics, text, &HashSet::new());
        let expected = text.replace("le=\"1\"} 1\nh", "le=\"1.0\"} 1\nh").replace("{le=\"2\"", "{le=\"2.0\"");
        assert_eq!(out, expected.replace(",quantile=\"1\"", ",quantile=\"1.0\""));
    }
}
