//! `mcpscope chaos scenarios`: what can be started, as this program knows it.

use std::borrow::Cow;
use std::process::ExitCode;

use anyhow::Context as _;
use mcpscope_chaos::helper::{ResourceTarget, run_if_requested};
use mcpscope_chaos::{Scenario, TargetError};
use serde::Serialize;

use super::super::End;
use super::super::health::section;
use super::super::screen::Screen;
use super::super::text::{BOLD, Cell, Column, DIM, Table, UNKNOWN, styled};
use super::args::ScenariosArgs;
use crate::failure::Failure;

pub(super) fn scenarios(args: &ScenariosArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.output);
    match &args.scenario {
        Some(name) => {
            let scenario: Scenario = name.parse().context("scenario").map_err(Failure::usage)?;
            let mut described = described(scenario);
            let has_backends = scenario.parameters().any(|parameter| parameter.name == "backend");
            described.netem = has_backends.then(netem);
            screen.show(&described, |described, width| one(scenario, described, width))?;
        }
        None => {
            let all: Vec<_> = Scenario::ALL.into_iter().map(described).collect();
            screen.show(&all, |all, width| list(all, width))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// With the names of `/api/v1/chaos/scenarios`.
#[derive(Serialize)]
struct Described {
    name: &'static str,
    description: &'static str,
    impact: &'static str,
    applies_to: String,
    parameters: Vec<DescribedParameter>,
    /// Of a scenario that can be done to packets: whether that is so on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    netem: Option<Netem>,
}

#[derive(Serialize)]
struct Netem {
    available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
struct DescribedParameter {
    name: &'static str,
    about: &'static str,
    default: Option<Cow<'static, str>>,
    expected: String,
}

fn described(scenario: Scenario) -> Described {
    let parameters = scenario.parameters().map(|parameter| DescribedParameter {
        name: parameter.name,
        about: parameter.about,
        default: scenario.default_of(parameter),
        expected: parameter.kind.to_string(),
    });
    Described {
        name: scenario.as_str(),
        description: scenario.description(),
        impact: scenario.defaults().impact.as_str(),
        applies_to: scenario.meaningful(),
        parameters: parameters.collect(),
        netem: None,
    }
}

/// Whether this machine's kernel can delay and lose packets.
fn netem() -> Netem {
    // It was not: this program does other things by now.
    let can = ResourceTarget::new(run_if_requested()).and_then(|target| target.has_netem());
    let reason = can.err().map(|error| TargetError::of(&error).0);
    Netem { available: reason.is_none(), reason }
}

fn list(all: &[Described], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::text("scenario"),
        Column::text("impact"),
        Column::long("what it does"),
        Column::long("where it means something"),
    ]);
    for scenario in all {
        let cells = [scenario.name, scenario.impact, scenario.description, &scenario.applies_to];
        table.row(cells.map(Cell::from).into());
    }
    format!("{}\n`mcpscope chaos scenarios SCENARIO` lists its parameters\n", table.take(width))
}

fn one(scenario: Scenario, described: &Described, width: Option<usize>) -> String {
    let Described { name, description, impact, applies_to, parameters, netem } = described;
    let mut facts = Table::pairs();
    let duration = humantime::format_duration(scenario.defaults().duration).to_string();
    for (name, value) in [("means something over", applies_to.as_str()), ("impact", *impact), ("lasts", &duration)] {
        facts.row(vec![Cell::new(name, DIM), value.into()]);
    }
    if let Some(netem) = netem {
        let not = netem.reason.as_ref().map(|why| format!("not on this machine: {why}"));
        let can = not.unwrap_or_else(|| "can be had on this machine".to_owned());
        facts.row(vec![Cell::new("backend=netem", DIM), can.as_str().into()]);
    }
    let mut table = Table::new([
        Column::text("parameter"),
        Column::text("default"),
        Column::long("what it is for"),
        Column::long("expected"),
    ]);
    for parameter in parameters {
        let default = parameter.default.as_deref().map_or_else(|| Cell::new(UNKNOWN, DIM), Cell::from);
        table.row(vec![parameter.name.into(), default, parameter.about.into(), parameter.expected.as_str().into()]);
    }
    format!(
        "{}: {description}\n{}{}\n`mcpscope chaos plan {name} NAME=VALUE ...` shows what it would hit\n",
        styled(name, BOLD),
        facts.take(width),
        section(table, width)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_listed_with_its_parameters() {
        let all: Vec<_> = Scenario::ALL.into_iter().map(described).collect();
        let text = list(&all, None);
        for scenario in Scenario::ALL {
            assert!(text.contains(scenario.as_str()), "{text}");
            let page = one(scenario, &described(scenario), None);
            for parameter in scenario.parameters() {
                assert!(page.contains(parameter.about), "{page}");
            }
        }
    }
}
