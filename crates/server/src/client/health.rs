//! `mcpscope health`.

use mcpscope_grpc::proto::{GetHealthRequest, Health, ProcessUsage, WatchHealthRequest};

use super::End;
use super::args::WatchArgs;
use super::number;
use super::peer::connect;
use super::screen::Screen;
use super::text::{self, Cell, Column, Table, UNKNOWN};

pub(super) async fn health(args: &WatchArgs) -> Result<(), End> {
    let mut screen = Screen::new(args.asked.output);
    let (mut client, peer) = connect(&args.asked).await?;
    if args.follow {
        let opened = peer.answer(client.health.watch_health(WatchHealthRequest {})).await;
        let stream = opened.map_err(|status| peer.failure(&status))?;
        return peer
            .follow(stream, async |tick| {
                let health = tick.health.unwrap_or_default();
                Ok(screen.show(&health, |health, width| {
                    format!("{} UTC\n{}\n", number::clock(health.timestamp), render(health, width))
                })?)
            })
            .await;
    }
    let answer = peer.answer(client.health.get_health(GetHealthRequest {})).await;
    let health = answer.map_err(|status| peer.failure(&status))?.health.unwrap_or_default();
    Ok(screen.show(&health, render)?)
}

fn render(health: &Health, width: Option<usize>) -> String {
    let mut out = format!(
        "{}   {} of the components are healthy   up {}\n",
        text::health(health.overall()),
        number::percent(health.health_percentage),
        number::span(health.uptime)
    );
    out.push_str(&components(health, width));
    out.push_str(&processes(&health.processes, width));
    out
}

/// A section with a row for each component; empty without any.
pub(super) fn components(health: &Health, width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::long("component"),
        Column::text("state"),
        Column::long("message"),
        Column::number("for"),
        Column::number("rate"),
        Column::number("count"),
    ]);
    for (name, component) in &health.components {
        let lasted = u64::try_from(health.timestamp.saturating_sub(component.since)).unwrap_or(0);
        table.row(vec![
            name.into(),
            text::health(component.status()),
            component.message.as_str().into(),
            number::span(lasted).into(),
            component.rate.map(number::rate).unwrap_or_default().into(),
            component.count.map(|count| count.to_string()).unwrap_or_default().into(),
        ]);
    }
    section(table, width)
}

/// A section with a row for each supervised process; empty without any.
pub(super) fn processes(processes: &[ProcessUsage], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::long("process"),
        Column::number("pid"),
        Column::number("memory"),
        Column::number("of limit"),
        Column::number("CPU"),
    ]);
    for process in processes {
        let unknown = || UNKNOWN.to_owned();
        table.row(vec![
            process.name.as_str().into(),
            process.pid.to_string().into(),
            process.memory_usage.map_or_else(unknown, number::bytes).into(),
            process.memory_ratio.map_or_else(unknown, number::percent).into(),
            number::percent(process.cpu_usage).into(),
        ]);
    }
    section(table, width)
}

/// The table after an empty line, if it has rows.
pub(super) fn section(mut table: Table, width: Option<usize>) -> String {
    if table.is_empty() { String::new() } else { format!("\n{}", table.take(width)) }
}

/// The cell of a value that there may not be.
pub(super) fn or_unknown(value: Option<f64>, show: impl FnOnce(f64) -> String) -> Cell {
    value.map_or_else(|| Cell::new(UNKNOWN, text::DIM), |value| show(value).into())
}

#[cfg(test)]
pub(super) mod tests {
    use expect_test::expect;
    use mcpscope_grpc::proto::{ComponentHealth, HealthState};

    use super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    /// With one component of each state.
    pub(in super::super) fn example() -> Health {
        let component = |status: HealthState, message: &str, since, rate, count| ComponentHealth {
            status: status.into(),
            message: message.into(),
            since,
            rate,
            count,
        };
        let components = [
            ("registry", component(HealthState::Healthy, "Registry active", 1_764_000_000_000, Some(1.25), None)),
            ("sessions", component(HealthState::Warning, "Active sessions", 1_763_999_000_000, None, Some(3))),
            ("up\x1b[2Jstream", component(HealthState::Critical, "gone\nfor good", 1_764_000_090_000, None, None)),
        ];
        Health {
            overall: HealthState::Warning.into(),
            health_percentage: 1.0 / 3.0,
            components: components.map(|(name, component)| (name.to_owned(), component)).into(),
            uptime: 3_720_000,
            timestamp: 1_764_000_100_000,
            processes: vec![
                ProcessUsage {
                    name: "files".into(),
                    pid: 4711,
                    memory_usage: Some(64 << 20),
                    memory_ratio: Some(0.0625),
                    cpu_usage: 0.012,
                },
                ProcessUsage { name: "web".into(), pid: 12, ..ProcessUsage::default() },
            ],
        }
    }

    #[test]
    fn health_as_text() {
        expect![[r#"
            warning   33 % of the components are healthy   up 1 h 2 min

            component          state     message                  for    rate  count
            registry           healthy   Registry active   1 min 40 s  1.25/s
            sessions           warning   Active sessions  18 min 20 s              3
            up\u{1b}[2Jstream  critical  gone\nfor good          10 s

            process   pid    memory  of limit    CPU
            files    4711  64.0 MiB     6.2 %  1.2 %
            web        12         –         –    0 %
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&render(&example(), None)).to_string());
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let component = ComponentHealth { message: HOSTILE.into(), ..ComponentHealth::default() };
        let process = ProcessUsage { name: HOSTILE.into(), ..ProcessUsage::default() };
        let health = Health {
            components: [(HOSTILE.to_owned(), component)].into(),
            processes: vec![process],
            ..Health::default()
        };
        assert_harmless(&render(&health, None));
    }

    #[test]
    fn before_the_first_tick_there_is_one_line() {
        let health = Health { overall: HealthState::Healthy.into(), health_percentage: 1.0, ..Health::default() };
        expect![[r#"
            healthy   100 % of the components are healthy   up 0 s
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&render(&health, Some(80))).to_string());
    }
}
