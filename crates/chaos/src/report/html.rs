//! A report as one page that needs nothing else: no script, nothing from elsewhere.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::chart::{calls, latency};
use super::{Injected, OutageReport, Report, Slot, duration};
use crate::Scenario;
use crate::audit::Footprint;
use crate::network::Packets;
use crate::status::Status;
use crate::steady::Touched;
use crate::target::{Achieved, Unit};

const STYLE: &str = include_str!("style.css");

impl Report {
    /// What a page of [`Report::to_html`] needs, as a `Content-Security-Policy`; the page asks for it itself, too.
    pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'";

    /// The report as one HTML page, for people: charts are in it, it needs no script, nothing from elsewhere and no network,
    /// and follows the reader's choice of light or dark.
    #[must_use]
    pub fn to_html(&self) -> String {
        let title = format!("{} #{}", text(&self.scenario), self.id);
        let policy = Self::CONTENT_SECURITY_POLICY;
        let main = [head(self), verdict(self), done(self), happened(self), recovery(self), leaks(self), again(self)];
        let main = main.concat();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}: {status}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{main}\
             <footer>mcpscope chaos report</footer>\n</main>\n</body>\n</html>\n",
            status = self.status.as_str(),
        )
    }
}

fn head(report: &Report) -> String {
    let by = report.started_by.told();
    let targets = list(&report.targets);
    let on = if targets.is_empty() { String::new() } else { format!(" on {targets}") };
    format!(
        "<header><p class=\"kicker\">Chaos experiment #{id}</p><h1>{scenario}</h1><p class=\"about\">{time} UTC, for \
         {lasted}{on}, started by {by}</p></header>\n",
        id = report.id,
        scenario = value(&report.scenario),
        time = utc(report.start_time),
        lasted = duration(lasted(report)),
    )
}

fn verdict(report: &Report) -> String {
    let tone = match report.held() {
        Some(true) => "good",
        Some(false) => "bad",
        None => "unknown",
    };
    let mark = match report.held() {
        Some(true) => "\u{2713}",
        Some(false) => "\u{2717}",
        None => "?",
    };
    let leak = report.leak.as_ref().map(|leak| {
        format!("<section class=\"card leak\"><p>Something was left over: {}.</p></section>\n", value(leak))
    });
    format!(
        "<section class=\"card verdict {tone}\"><p>{}</p><span class=\"status\">{mark} {}</span></section>\n{}",
        text(&report.verdict()),
        report.status.as_str().replace('_', " "),
        leak.unwrap_or_default(),
    )
}

// === what was done ===

/// What was done to messages, as tiles.
fn messages(injection: &Injected) -> String {
    let mut tiles = String::new();
    if injection.connections > 0 {
        let untouched = injection.connections.saturating_sub(injection.connections_chosen);
        let note =
            if untouched == 0 { "none left untouched".to_owned() } else { format!("{untouched} left untouched") };
        let of = format!("{} of {}", injection.connections_chosen, injection.connections);
        tiles += &tile("Connections", &of, &note);
    }
    let matched = format!("of {} that matched", injection.matched);
    tiles += &tile("Hits", &injection.injected.to_string(), if injection.matched > 0 { &matched } else { "" });
    let missing = injection.injected.saturating_sub(injection.observed);
    let note = match missing {
        _ if injection.injected == 0 => String::new(),
        0 => "all that were decided".to_owned(),
        missing => format!("{missing} decided and not carried out"),
    };
    tiles += &tile("Carried out", &injection.observed.to_string(), &note);
    let asked = format!("{} asked for", percent(injection.requested_intensity));
    let achieved = injection.achieved_intensity.map_or_else(|| "\u{2013}".to_owned(), percent);
    tiles += &tile("Intensity achieved", &achieved, &asked);
    if let Some(Packets { sent, dropped }) = injection.packets {
        tiles += &tile("Packets lost", &dropped.to_string(), &format!("{sent} arrived"));
    }
    tiles
}

/// What was done to processes, as tiles.
fn crashes(injection: &Injected) -> String {
    // Each target in each second; without a rate there is no chance.
    let note = match injection.matched {
        0 => String::new(),
        chances => format!("in {chances} chances"),
    };
    let mut tiles = tile("Crashes", &injection.injected.to_string(), &note);
    if injection.matched > 0 {
        let achieved = injection.achieved_intensity.map_or_else(|| "\u{2013}".to_owned(), percent);
        tiles += &tile("Chance", &achieved, &format!("{} asked for", percent(injection.requested_intensity)));
    }
    tiles
}

/// What was taken of memory or processors, as a tile.
fn taken(resource: Option<&Achieved>) -> String {
    let Some(Achieved { requested, achieved, unit, .. }) = resource else { return tile("Taken", "nothing", "") };
    let size = |bytes: f64| bytesize::ByteSize(bytes as u64).display().iec().to_string();
    match unit {
        Unit::Bytes => tile("Memory taken", &size(*achieved), &format!("{} asked for", size(*requested))),
        Unit::Share => tile("Load of each core", &percent(*achieved), &format!("{} asked for", percent(*requested))),
    }
}

fn done(report: &Report) -> String {
    let injection = &report.injection;
    let tiles = match report.scenario.parse() {
        Ok(Scenario::ProcessCrash) => crashes(injection),
        Ok(Scenario::MemoryPressure | Scenario::CpuOverload) => taken(injection.resource.as_ref()),
        _ => messages(injection),
    };
    let mut rows: String = report.parameters.0.iter().map(|(name, value)| row(name, &shown(value))).collect();
    if !report.steady_state.is_empty() {
        rows += &row("had to hold before and after", &report.steady_state.join(", "));
    }
    let rows = if rows.is_empty() {
        "<p class=\"note\">Everything else as by default.</p>".to_owned()
    } else {
        format!("<h3>Asked for</h3><table class=\"plain\"><tbody>{rows}</tbody></table>")
    };
    let cgroup = injection.resource.as_ref().and_then(|resource| resource.cgroup.as_deref());
    let cgroup = cgroup.map(|group| format!("<p class=\"note\">In the control group {}.</p>", value(group)));
    let unjournalled = match injection.unjournalled {
        0 => String::new(),
        lost => format!("<p class=\"note\">{lost} hits found no place in the journal.</p>"),
    };
    section(
        "What was done",
        &format!("<dl class=\"tiles\">{tiles}</dl>{}{rows}{unjournalled}", cgroup.unwrap_or_default()),
    )
}

// === what happened ===

fn happened(report: &Report) -> String {
    let charts = [latency(report), calls(report)].into_iter().flatten().collect::<String>();
    let table = slots(report);
    if charts.is_empty() && table.is_empty() {
        return section("What happened", "<p class=\"muted\">Nobody watched the system, so nothing is known.</p>");
    }
    let charts = if charts.is_empty() { "<p class=\"muted\">No calls were seen.</p>".to_owned() } else { charts };
    section("What happened", &format!("{charts}{table}"))
}

/// A figure of a slot: of the calls that no fault touched, and of those that one did.
struct Figure {
    name: &'static str,
    untouched: fn(&Slot) -> Option<f64>,
    touched: fn(&Touched) -> Option<f64>,
    show: fn(f64) -> String,
    /// Whether much more than before is worth a mark.
    is_bad: bool,
}

impl Figure {
    const fn count(name: &'static str, untouched: fn(&Slot) -> Option<f64>) -> Self {
        Self { name, untouched, touched: |_| None, show: |count| format!("{count:.0}"), is_bad: false }
    }

    const fn time(
        name: &'static str,
        untouched: fn(&Slot) -> Option<f64>,
        touched: fn(&Touched) -> Option<f64>,
    ) -> Self {
        Self { name, untouched, touched, show: milliseconds, is_bad: true }
    }
}

const FIGURES: [Figure; 8] = [
    Figure {
        touched: |touched| Some(touched.calls as f64),
        ..Figure::count("Calls", |slot| Some(slot.sample.calls as f64))
    },
    Figure {
        name: "Error rate",
        untouched: |slot| slot.error_rate,
        touched: Touched::error_rate,
        show: percent,
        is_bad: true,
    },
    Figure::time("p50", |slot| slot.sample.p50_ms, |touched| touched.p50_ms),
    Figure::time("p95", |slot| slot.sample.p95_ms, |touched| touched.p95_ms),
    Figure::time("p99", |slot| slot.sample.p99_ms, |touched| touched.p99_ms),
    Figure { show: percent, ..Figure::count("Healthy", |slot| slot.sample.healthy) },
    Figure::count("Repeated ids", |slot| slot.sample.repeated.map(|count| count as f64)),
    Figure::count("Double answers", |slot| slot.sample.duplicates.map(|count| count as f64)),
];

/// A column of the table.
struct Column<'a> {
    name: &'static str,
    slot: Option<&'a Slot>,
    touched: Option<&'a Touched>,
}

impl Column<'_> {
    fn figure(&self, figure: &Figure) -> Option<f64> {
        match (self.touched, self.slot) {
            (Some(touched), _) => (figure.touched)(touched),
            (None, slot) => (figure.untouched)(slot?),
        }
    }
}

/// The time before, during and after the fault beside one another; during it, the calls that it touched apart.
fn slots(report: &Report) -> String {
    let column = |name, slot| Column { name, slot, touched: None };
    let touched = report.during.as_ref().and_then(|slot| slot.sample.touched.as_ref());
    let touched = touched.filter(|touched| touched.calls > 0);
    let mut columns = vec![column("Before", report.before.as_ref()), column("During", report.during.as_ref())];
    columns.extend(touched.map(|_| Column { name: "Touched by the fault", slot: report.during.as_ref(), touched }));
    columns.push(column("After", report.after.as_ref()));
    if columns.iter().all(|column| column.slot.is_none()) {
        return String::new();
    }
    let head = |column: &Column<'_>| {
        let lasted = column.slot.filter(|_| column.touched.is_none());
        let lasted = lasted.map(|slot| format!("<span class=\"wide\">, {}</span>", duration(slot.duration)));
        format!("<th class=\"n\" scope=\"col\">{}{}</th>", column.name, lasted.unwrap_or_default())
    };
    let heads: String = columns.iter().map(head).collect();
    let rows: String = FIGURES.iter().filter_map(|figure| figure_row(figure, &columns)).collect();
    let note = "What the fault did itself never counts against the system: the other columns are of calls that no fault \
                touched. A retry under an id of its own cannot be told from another call, so it is not counted.";
    format!(
        "<div class=\"scroll\"><table class=\"figures\"><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody>\
         </table></div><p class=\"note\">{note}</p>"
    )
}

/// A row, unless nothing is known of it. What is much more than before is marked, where that is bad.
fn figure_row(figure: &Figure, columns: &[Column<'_>]) -> Option<String> {
    let values: Vec<_> = columns.iter().map(|column| column.figure(figure)).collect();
    if values.iter().all(Option::is_none) {
        return None;
    }
    let before = values.first().copied().flatten();
    let cell = |(column, value): (&Column<'_>, &Option<f64>)| {
        let is_much = |(now, before): (f64, f64)| now > 2.0 * before && now > before + 0.01;
        let is_worse = figure.is_bad && column.touched.is_none() && value.zip(before).is_some_and(is_much);
        let class = match (is_worse, column.touched) {
            (true, _) => "n worse",
            (false, Some(_)) => "n injected",
            (false, None) => "n",
        };
        let shown = value.map_or_else(|| "\u{2013}".to_owned(), figure.show);
        format!("<td class=\"{class}\">{shown}</td>")
    };
    let cells: String = columns.iter().zip(&values).map(cell).collect();
    Some(format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", figure.name))
}

// === recovery, leaks, replay ===

fn recovery(report: &Report) -> String {
    if report.status == Status::NotStarted {
        return String::new();
    }
    let (limit, time) = (report.recovery.limit, report.recovery.time);
    let detected = match report.time_to_detect {
        Some(time) => tile("Time to detect", &duration(time), "from the beginning of the fault"),
        None => tile("Time to detect", "\u{2013}", "the steady state held all the time"),
    };
    let recovered = match (time, report.recovery.observed) {
        (Some(time), _) => tile("Time to recover", &duration(time), "from the end of the fault"),
        (None, true) => tile("Time to recover", "not in time", "from the end of the fault"),
        (None, false) if report.status == Status::Aborted => {
            tile("Time to recover", "not observed", "it was ended early")
        }
        (None, false) => tile("Time to recover", "not observed", "too few calls to judge by"),
    };
    let limit_tile = tile("Limit", &duration(limit), "recovery_time");
    let meter = (report.recovery.observed && limit > 0).then(|| {
        let share = time.map_or(1.0, |time| (time as f64 / limit as f64).min(1.0)) * 100.0;
        let class = if time.is_some() { "good" } else { "bad" };
        format!(
            "<svg class=\"meter\" aria-hidden=\"true\"><rect class=\"track\" width=\"100%\" height=\"8\"/>\
             <rect class=\"{class}\" width=\"{share:.2}%\" height=\"8\"/></svg>\
             <div class=\"ends\" aria-hidden=\"true\"><span>end of the fault</span><span>{}</span></div>",
            duration(limit)
        )
    });
    let tiles = [detected, recovered, limit_tile].concat();
    section("Recovery", &format!("<dl class=\"tiles\">{tiles}</dl>{}{}", meter.unwrap_or_default(), outages(report)))
}

/// The processes that were ended, the longest away first.
fn outages(report: &Report) -> String {
    const SHOWN: usize = 20;
    let mut outages: Vec<_> = report.outages.iter().collect();
    // What is not known is the longest; what is equally long stays in order.
    outages.sort_by_key(|outage| std::cmp::Reverse(outage.first_good_call_after.unwrap_or(u64::MAX)));
    let after = |time: Option<u64>| time.map_or_else(|| "\u{2013}".to_owned(), |time| milliseconds(time as f64));
    let row = |outage: &OutageReport| {
        let times = [outage.restarted_after, outage.ready_after, outage.first_good_call_after].map(after);
        let times = times.map(|time| format!("<td class=\"n\">{time}</td>")).concat();
        let at = milliseconds(outage.at as f64);
        format!("<tr><th scope=\"row\">{}</th><td class=\"n\">{at}</td>{times}</tr>", value(&outage.target))
    };
    let rows: String = outages.iter().take(SHOWN).map(|outage| row(outage)).collect();
    if rows.is_empty() {
        return rows;
    }
    let heads = ["Ended at", "Restarted after", "Ready after", "First good call after"];
    let heads = heads.map(|head| format!("<th class=\"n\" scope=\"col\">{head}</th>")).concat();
    let more = match outages.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" {more} more were not longer."),
    };
    format!(
        "<h3>Processes that were ended</h3><div class=\"scroll\"><table class=\"figures\"><thead><tr><td></td>{heads}</tr>\
         </thead><tbody>{rows}</tbody></table></div><p class=\"note\">From the beginning of the fault to the end of the \
         process; from there until another one was started, until it could be called, and until a call ended well.{more}</p>"
    )
}

fn leaks(report: &Report) -> String {
    if report.status == Status::NotStarted {
        return String::new();
    }
    let verdict = match &report.leak {
        Some(leak) => format!("<p>Left over: {}.</p>", value(leak)),
        None if report.audit.looked_at.is_empty() => "<p>Not known: nobody looked.</p>".to_owned(),
        None => "<p>Nothing was left over.</p>".to_owned(),
    };
    let audit = &report.audit;
    let looked_at = match list(&audit.looked_at) {
        names if names.is_empty() => String::new(),
        names => format!("<p class=\"note\">Looked at: {names}.</p>"),
    };
    let mut rows = String::new();
    if let (Some(before), Some(after)) = (&audit.before, &audit.after) {
        let mut row = |name: &str, of: fn(&Footprint) -> Option<String>| {
            if let (Some(before), Some(after)) = (of(before), of(after)) {
                rows += &format!(
                    "<tr><th scope=\"row\">{name}</th><td class=\"n\">{before}</td><td class=\"n\">{after}</td></tr>"
                );
            }
        };
        row("Children", |seen| Some(seen.children.as_ref()?.len().to_string()));
        row("Descriptors without sockets", |seen| Some(seen.descriptors?.to_string()));
        row("Resident memory", |seen| Some(bytesize::ByteSize(seen.memory_bytes?).to_string()));
    }
    let heads = "<thead><tr><td></td><th class=\"n\" scope=\"col\">Before</th><th class=\"n\" scope=\"col\">After</th></tr></thead>";
    let table = if rows.is_empty() {
        String::new()
    } else {
        format!("<div class=\"scroll\"><table class=\"figures\">{heads}<tbody>{rows}</tbody></table></div>")
    };
    section("What was left over", &format!("{verdict}{table}{looked_at}"))
}

fn again(report: &Report) -> String {
    let seed = format!(
        "<p class=\"note\">The seed is <code>{}</code>: over the same traffic it makes the same decisions.</p>",
        report.seed
    );
    let how = match &report.replay {
        Some(command) => format!("<pre><code>{}</code></pre>{seed}", text(command)),
        None if report.status == Status::NotStarted => return String::new(),
        None => format!("<p class=\"muted\">Its journal has not everything, so it cannot be replayed.</p>{seed}"),
    };
    section("How to do it again", &how)
}

// === pieces ===

fn section(title: &str, inside: &str) -> String {
    format!("<section class=\"card\"><h2>{title}</h2>{inside}</section>\n")
}

fn tile(name: &str, figure: &str, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!("<small>{note}</small>") };
    format!("<div><dt>{name}</dt><dd>{figure}{note}</dd></div>")
}

fn row(name: &str, value: &str) -> String {
    format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", self::value(name), self::value(value))
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| value(name)).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What makes the text after it run the other way.
const TURNS: [char; 11] = [
    '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}',
    '\u{2068}', '\u{2069}',
];

/// Text from users or the wire, as text: whatever is in it, it is that and no markup, and turns nothing around.
fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() || TURNS.contains(&letter) => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The same in the middle of other text, which it does not disturb.
fn value(value: &str) -> String {
    format!("<bdi>{}</bdi>", text(value))
}

fn lasted(report: &Report) -> u64 {
    report.end_time.saturating_sub(report.start_time)
}

fn utc(ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    let latest = Duration::from_secs(253_402_300_799);
    let time = time.filter(|time| *time <= SystemTime::UNIX_EPOCH + latest).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', "")
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent == percent.round() {
        0
    } else if percent < 1.0 {
        2
    } else {
        1
    };
    format!("{percent:.digits$} %")
}

/// A duration in ms with three digits or so.
pub(super) fn milliseconds(ms: f64) -> String {
    let (value, unit) = if ms >= 1000.0 { (ms / 1000.0, "s") } else { (ms, "ms") };
    let digits = if value == value.round() || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_about_three_digits() {
        let shown = [0.0, 0.123, 4.0, 12.34, 304.56, 1250.0, 60_000.0].map(milliseconds);
        assert_eq!(shown, ["0 ms", "0.12 ms", "4 ms", "12.3 ms", "305 ms", "1.25 s", "60 s"]);
        assert_eq!([0.0, 0.0042, 0.125, 0.3, 1.0].map(percent), ["0 %", "0.42 %", "12.5 %", "30 %", "100 %"]);
    }

    #[test]
    fn times_are_of_the_calendar_whatever_they_are() {
        assert_eq!(utc(1_800_000_000_000), "2027-01-15 08:00:00");
        assert_eq!(utc(u64::MAX), "1970-01-01 00:00:00");
    }
}
