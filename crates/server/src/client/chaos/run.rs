//! `mcpscope chaos run`: the experiments of a file, one after the other, for a CI pipeline.

mod case;
mod junit;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use mcpscope_config::{ConfigError, ConfigErrors, Experiment, Origin, Scalar, Suite};
use mcpscope_grpc::mistakes::{self, Mistake};
use mcpscope_grpc::prost_types::value::Kind;
use mcpscope_grpc::prost_types::{Struct, Value};
use mcpscope_grpc::proto::chaos_event::What;
use mcpscope_grpc::proto::{
    ChaosTestStatus, GetReportRequest, PlanRequest, StartExperimentRequest, StopExperimentRequest, WatchEventsResponse,
};
use mcpscope_grpc::tonic::{Code, Status, Streaming};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::case::{Case, Outcome, Summary};
use super::super::End;
use super::super::screen::Screen;
use super::super::text::clean;
use super::args::RunArgs;
use super::{Engine, NOT_WELL, experiment, report, shown};
use crate::failure::{Failure, say};

/// As a shell says that these signals ended a program.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

pub(super) async fn run(args: &RunArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let (mut engine, suite) = planned(args).await?;
    if let Some(folder) = &args.report {
        let made = std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()));
        made.map_err(|error| Failure::usage(error.context("--report")))?;
    }
    let mut run = Run {
        events: experiment::watch(&mut engine).await?,
        engine,
        summary: Summary::new(&args.file, suite.experiments()),
        args,
        signals: Signals::new().map_err(Failure::internal)?,
        ended_by: None,
        over: None,
    };
    // Where it cannot be written, that is known before anything is disturbed; and what is there is never of another run.
    run.write_junit()?;
    let failed = run.all(suite.experiments()).await.err();
    let written = run.write_junit();
    let Run { summary, ended_by, .. } = run;
    screen.show(&summary, |summary, width| summary.render(width))?;
    match (failed, ended_by) {
        (Some(failed), _) => Err(failed),
        (None, Some(code)) => written.map(|()| ExitCode::from(code)).map_err(End::from),
        (None, None) if args.assert && !summary.is_well() => {
            written.map(|()| ExitCode::from(NOT_WELL)).map_err(End::from)
        }
        (None, None) => written.map(|()| ExitCode::SUCCESS).map_err(End::from),
    }
}

/// The file's experiments and the instance that takes all of them. What is wrong with the file and what the instance refuses is told
/// at once.
async fn planned(args: &RunArgs) -> Result<(Engine, Suite), Failure> {
    let (suite, mut mistakes) = Suite::read(&args.file);
    let told = |mistakes: Vec<ConfigError>| ConfigErrors::none_of(mistakes).map_err(Failure::usage);
    let Some(suite) = suite else {
        told(mistakes)?;
        return Err(Failure::internal(anyhow!("{} cannot be read", args.file.display())));
    };
    let asked = async {
        let mut engine = Engine::find(&args.of).await?;
        allowed(&mut engine).await?;
        let refused = plan_all(&mut engine, &suite).await?;
        Ok::<_, Failure>((engine, refused))
    };
    let (engine, refused) = match asked.await {
        Ok(planned) => planned,
        // Who is to run it is the smaller matter.
        Err(failure) => return told(mistakes).and(Err(failure)),
    };
    let is_refused = !refused.is_empty();
    mistakes.extend(refused);
    mistakes.sort_by_key(|mistake| match mistake.origin {
        Origin::File { place, .. } => place,
        Origin::Variable(_) => None,
    });
    let told = told(mistakes);
    told.map_err(|failure| if is_refused { failure.and("nothing was started") } else { failure })?;
    Ok((engine, suite))
}

/// Refuses where nothing could be started, whatever it is.
async fn allowed(engine: &mut Engine) -> Result<(), Failure> {
    let status = match engine.status().await {
        Ok(status) => status,
        Err(status) => return Err(engine.peer.failure(&status)),
    };
    if status.emergency_stop {
        let by = status.stopped_by.unwrap_or_default();
        return Err(Failure::unavailable(anyhow!("everything was stopped by {}", clean(&by)))
            .and(&format!("`{}` allows experiments again", engine.command("rearm"))));
    }
    match status.off {
        Some(why) => Err(Failure::unavailable(anyhow!("chaos is off ({})", clean(&why)))),
        None => Ok(()),
    }
}

/// Why the instance refuses any of them.
async fn plan_all(engine: &mut Engine, suite: &Suite) -> Result<Vec<ConfigError>, Failure> {
    let mut refused = Vec::new();
    for (at, experiment) in suite.experiments().iter().enumerate() {
        let request = PlanRequest { scenario: experiment.scenario.clone(), parameters: Some(parameters(experiment)) };
        let answer = engine.peer.answer(engine.client.chaos.plan(request)).await;
        match answer {
            Ok(_) => {}
            Err(status) if is_refusal(&status) => {
                let mistakes = mistakes::of(&status);
                if mistakes.is_empty() {
                    refused.push(suite.refuse(at, None, &clean(status.message())));
                }
                let place =
                    |Mistake { parameter, told }: Mistake| suite.refuse(at, parameter.as_deref(), &clean(&told));
                refused.extend(mistakes.into_iter().map(place));
            }
            Err(status) => return Err(engine.peer.failure(&status)),
        }
    }
    Ok(refused)
}

/// Whether an experiment was refused: another one need not be.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted)
}

/// As texts, like those of the command line: the instance knows what they may be.
fn parameters(experiment: &Experiment) -> Struct {
    let text = |value: &Scalar| match value {
        Scalar::Switch(switch) => switch.to_string(),
        Scalar::Whole(whole) => whole.to_string(),
        Scalar::Number(number) => number.to_string(),
        Scalar::Text(text) => text.clone(),
    };
    let given = experiment.parameters.iter().chain(&experiment.matching);
    let fields = given.map(|(name, value)| (name.clone(), Value { kind: Some(Kind::StringValue(text(value))) }));
    Struct { fields: fields.collect() }
}

/// What ends a run early.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one, as an exit code.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }
}

/// What comes first.
enum Next {
    Event(Box<WatchEventsResponse>),
    Signal(u8),
}

struct Run<'a> {
    engine: Engine,
    /// Of all experiments, from before the first on.
    events: Streaming<WatchEventsResponse>,
    summary: Summary,
    args: &'a RunArgs,
    signals: Signals,
    /// The exit code of the signal that ended it.
    ended_by: Option<u8>,
    /// Why those that follow are skipped.
    over: Option<String>,
}

impl Run<'_> {
    async fn all(&mut self, experiments: &[Experiment]) -> Result<(), End> {
        for (at, experiment) in experiments.iter().enumerate() {
            let done = self.one(at, experiment).await;
            if let Err(End::Failed(failure)) = &done {
                let case = &mut self.summary.experiments[at];
                case.end(Outcome::Error, &failure.to_string());
            }
            self.tell(at);
            done?;
            if let Some(why) = self.over.take() {
                self.summary.skip_rest(&why);
                say(format_args!("{}: what follows is skipped", clean(&why)));
                return Ok(());
            }
            self.write_junit()?;
        }
        Ok(())
    }

    /// Runs one to its end.
    async fn one(&mut self, at: usize, experiment: &Experiment) -> Result<(), End> {
        if !experiment.pause.is_zero() {
            self.say(at, &format!("starts in {}", humantime::format_duration(experiment.pause)));
            self.pause(experiment).await?;
        }
        if let Some(why) = &self.over {
            self.summary.experiments[at].end(Outcome::Skipped, why);
            return Ok(());
        }
        let began = Instant::now();
        let ended = self.inject(at, experiment).await;
        self.summary.experiments[at].seconds = began.elapsed().as_secs_f64();
        ended?;
        if self.ended_by.is_some() {
            return Ok(());
        }
        let status = self.engine.status().await.map_err(|status| self.engine.peer.failure(&status))?;
        if status.emergency_stop {
            self.over = Some(format!("everything was stopped by {}", status.stopped_by.unwrap_or_default()));
        }
        Ok(())
    }

    /// Waits, unless something ends the run.
    async fn pause(&mut self, experiment: &Experiment) -> Result<(), End> {
        let until = tokio::time::sleep(experiment.pause);
        tokio::pin!(until);
        while self.over.is_none() {
            tokio::select! {
                () = &mut until => break,
                next = next(&self.engine, &mut self.events, &mut self.signals) => match next? {
                    Next::Event(event) => self.note(&event),
                    Next::Signal(code) => self.end(code),
                },
            }
        }
        Ok(())
    }

    /// Starts one, follows it and judges it.
    async fn inject(&mut self, at: usize, experiment: &Experiment) -> Result<(), End> {
        let (scenario, parameters) = (experiment.scenario.clone(), Some(parameters(experiment)));
        let request = self.engine.authorized(StartExperimentRequest { scenario, parameters })?;
        let answer = self.engine.peer.answer(self.engine.client.chaos.start_experiment(request)).await;
        let test = match answer {
            Ok(answer) => answer.test.unwrap_or_default(),
            Err(status) if is_refusal(&status) => {
                self.summary.experiments[at].end(Outcome::Error, &format!("it was refused: {}", status.message()));
                return Ok(());
            }
            Err(status) => return Err(self.engine.peer.failure(&status).into()),
        };
        self.summary.experiments[at].id = Some(test.id);
        self.summary.experiments[at].seed = test.details.as_ref().map(|details| details.seed);
        let (targets, _) = shown::details(&test);
        self.say(at, &format!("experiment {} is {}, on {}", test.id, shown::word(test.status()), clean(&targets)));
        let mut status = test.status();
        while !shown::is_final(status) {
            match next(&self.engine, &mut self.events, &mut self.signals).await? {
                Next::Signal(_) if self.ended_by.is_some() => {
                    let why = "interrupted again, before it had ended";
                    self.summary.experiments[at].end(Outcome::Error, why);
                    return Ok(());
                }
                Next::Signal(code) => {
                    self.end(code);
                    self.say(at, &format!("interrupted: experiment {} is being stopped", test.id));
                    self.stop(test.id).await?;
                }
                Next::Event(event) => {
                    self.note(&event);
                    if let Some(What::Changed(changed)) = event.event.and_then(|event| event.what)
                        && changed.id == test.id
                    {
                        status = changed.status();
                        if status == ChaosTestStatus::Recovering {
                            self.say(at, "the fault is over, recovering");
                        }
                    }
                }
            }
        }
        self.judge(at, experiment, test.id).await
    }

    /// Ends an experiment, which may have ended meanwhile.
    async fn stop(&mut self, id: u64) -> Result<(), Failure> {
        let answer =
            self.engine.peer.answer(self.engine.client.chaos.stop_experiment(StopExperimentRequest { id })).await;
        match answer {
            Err(status) if status.code() != Code::NotFound => Err(self.engine.peer.failure(&status)),
            _ => Ok(()),
        }
    }

    async fn judge(&mut self, at: usize, experiment: &Experiment, id: u64) -> Result<(), End> {
        let request = GetReportRequest { id, html: self.args.report.is_some() };
        let answer = self.engine.peer.answer(self.engine.client.chaos.get_report(request)).await;
        let mut answer = answer.map_err(|status| self.engine.peer.failure(&status))?;
        let page = answer.html.take();
        self.summary.experiments[at].judge(experiment.expect, answer);
        if let (Some(folder), Some(page)) = (&self.args.report, page) {
            let path = folder.join(format!("experiment-{id}.html"));
            report::write(&path, &page).map_err(Failure::usage)?;
            self.summary.experiments[at].report = Some(path.display().to_string());
        }
        Ok(())
    }

    /// A signal ends the run.
    fn end(&mut self, code: u8) {
        self.ended_by = Some(code);
        self.over = Some("the run was interrupted".to_owned());
    }

    /// An emergency stop ends the run.
    fn note(&mut self, event: &WatchEventsResponse) {
        let what = event.event.as_ref().and_then(|event| event.what.as_ref());
        if matches!(what, Some(What::EmergencyStop(_))) && self.over.is_none() {
            self.over = Some("everything was stopped".to_owned());
        }
    }

    fn say(&self, at: usize, what: &str) {
        let experiments = &self.summary.experiments;
        say(format_args!("{}/{} {}: {what}", at + 1, experiments.len(), clean(&experiments[at].name)));
    }

    /// Says what became of one.
    fn tell(&self, at: usize) {
        let Case { outcome, why, .. } = &self.summary.experiments[at];
        self.say(at, &format!("{}: {}", outcome.as_str(), clean(why)));
    }

    /// Whenever there is something new: a pipeline that is killed leaves what is known.
    fn write_junit(&self) -> Result<(), Failure> {
        let Some(path) = &self.args.junit else { return Ok(()) };
        let page = junit::page(&self.summary).map_err(Failure::internal)?;
        write_page(path, &page).map_err(Failure::usage)
    }
}

fn write_page(path: &Path, page: &str) -> anyhow::Result<()> {
    report::write(path, page).context("--junit")
}

async fn next(
    engine: &Engine,
    events: &mut Streaming<WatchEventsResponse>,
    signals: &mut Signals,
) -> Result<Next, Failure> {
    tokio::select! {
        code = signals.next() => Ok(Next::Signal(code)),
        event = engine.peer.next(events) => event.map(|event| Next::Event(Box::new(event))),
    }
}
