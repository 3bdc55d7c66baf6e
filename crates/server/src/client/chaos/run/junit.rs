//! The results as JUnit XML, which CI systems read.

use std::io;

use quick_xml::Writer;
use quick_xml::events::BytesText;

use super::super::super::text::clean;
use super::case::{Case, Outcome, Summary};

/// One test suite with one test case for each experiment.
///
/// # Errors
/// Never, as it is written to memory.
pub(super) fn page(summary: &Summary) -> io::Result<String> {
    let count = |outcome| summary.count(outcome).to_string();
    let (all, seconds) = (summary.experiments.len().to_string(), seconds(summary.seconds()));
    let [failed, errors, skipped] = [Outcome::Failed, Outcome::Error, Outcome::Skipped].map(count);
    let counts = [("tests", all), ("failures", failed), ("errors", errors), ("skipped", skipped), ("time", seconds)];
    let counts = || counts.iter().map(|(name, value)| (*name, value.as_str()));

    let mut xml = Writer::new_with_indent(Vec::from(*b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"), b' ', 2);
    let suites = xml.create_element("testsuites").with_attribute(("name", "mcpscope chaos")).with_attributes(counts());
    suites.write_inner_content(|xml| {
        let name = clean(&summary.file);
        let suite = xml.create_element("testsuite").with_attribute(("name", &*name)).with_attributes(counts());
        suite.write_inner_content(|xml| summary.experiments.iter().try_for_each(|case| test_case(xml, case)))?;
        Ok(())
    })?;
    let mut page = String::from_utf8_lossy(&xml.into_inner()).into_owned();
    page.push('\n');
    Ok(page)
}

fn test_case(xml: &mut Writer<Vec<u8>>, case: &Case) -> io::Result<()> {
    let (name, class) = (clean(&case.name), format!("chaos.{}", clean(&case.scenario)));
    let attributes = [("name", &*name), ("classname", &class), ("time", &seconds(case.seconds))];
    let element = xml.create_element("testcase").with_attributes(attributes);
    element.write_inner_content(|xml| {
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let properties = [
            ("id", number(case.id)),
            ("seed", number(case.seed)),
            ("expect", Some(case.expect.to_owned())),
            ("status", case.status.clone()),
            ("injected", number(case.injected)),
            ("leak", case.leak.clone()),
            ("report", case.report.clone()),
        ];
        xml.create_element("properties").write_inner_content(|xml| {
            for (name, value) in &properties {
                if let Some(value) = value {
                    let value = clean(value);
                    xml.create_element("property")
                        .with_attributes([("name", *name), ("value", &*value)])
                        .write_empty()?;
                }
            }
            Ok(())
        })?;
        let why = clean(&case.why);
        let with_reason = |xml: &mut Writer<Vec<u8>>, element: &str| {
            let element = xml.create_element(element).with_attribute(("message", &*why));
            // Some readers show the attribute, others the text.
            element.write_text_content(BytesText::new(&why)).map(drop)
        };
        match case.outcome {
            Outcome::Passed => xml.create_element("system-out").write_text_content(BytesText::new(&why)).map(drop),
            Outcome::Failed => with_reason(xml, "failure"),
            Outcome::Error => with_reason(xml, "error"),
            Outcome::Skipped => {
                xml.create_element("skipped").with_attribute(("message", &*why)).write_empty().map(drop)
            }
        }
    })?;
    Ok(())
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;
    use mcpscope_config::Expected;
    use mcpscope_grpc::proto::ChaosTestStatus;
    use quick_xml::Reader;
    use quick_xml::events::Event;

    use super::super::super::super::text::tests::HOSTILE;
    use super::super::case::tests::{answer, experiment};
    use super::*;

    fn summary(names: &[&str]) -> Summary {
        let experiments: Vec<_> = names.iter().map(|name| experiment(name, Expected::Completed)).collect();
        Summary::new(Path::new("suite.yaml"), &experiments)
    }

    #[test]
    fn each_experiment_is_a_test_case() {
        let mut summary = summary(&["a <slow> \"server\" & more", "two", "three", "four"]);
        let [one, two, three, _] = &mut summary.experiments[..] else { panic!("four experiments") };
        one.judge(Expected::Completed, answer(ChaosTestStatus::Completed, Some(true), "It held: all was well."));
        one.seconds = 11.5;
        one.id = Some(7);
        two.judge(
            Expected::Completed,
            answer(ChaosTestStatus::Failed, Some(false), "It did not hold: p95 < 500 & more."),
        );
        three.end(Outcome::Error, "it was refused: 3 experiments are running");
        expect![[r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <testsuites name="mcpscope chaos" tests="4" failures="1" errors="1" skipped="1" time="11.500">
              <testsuite name="suite.yaml" tests="4" failures="1" errors="1" skipped="1" time="11.500">
                <testcase name="a &lt;slow&gt; &quot;server&quot; &amp; more" classname="chaos.hang" time="11.500">
                  <properties>
                    <property name="id" value="7"/>
                    <property name="seed" value="42"/>
                    <property name="expect" value="completed"/>
                    <property name="status" value="completed"/>
                    <property name="injected" value="31"/>
                  </properties>
                  <system-out>It held: all was well.</system-out>
                </testcase>
                <testcase name="two" classname="chaos.hang" time="0.000">
                  <properties>
                    <property name="seed" value="42"/>
                    <property name="expect" value="completed"/>
                    <property name="status" value="failed"/>
                    <property name="injected" value="31"/>
                  </properties>
                  <failure message="It did not hold: p95 &lt; 500 &amp; more.">It did not hold: p95 &lt; 500 &amp; more.</failure>
                </testcase>
                <testcase name="three" classname="chaos.hang" time="0.000">
                  <properties>
                    <property name="expect" value="completed"/>
                  </properties>
                  <error message="it was refused: 3 experiments are running">it was refused: 3 experiments are running</error>
                </testcase>
                <testcase name="four" classname="chaos.hang" time="0.000">
                  <properties>
                    <property name="expect" value="completed"/>
                  </properties>
                  <skipped message="it was not run"/>
                </testcase>
              </testsuite>
            </testsuites>
        "#]].assert_eq(&page(&summary).unwrap());
    }

    #[test]
    fn whatever_a_text_has_in_it_the_page_is_xml() {
        // Neither control characters nor the last two of the first plane may be in XML, not even escaped.
        let text = format!("]]><x a='1'>&\0\u{fffe}\u{ffff}\n{HOSTILE}");
        for outcome in [Outcome::Passed, Outcome::Failed, Outcome::Error, Outcome::Skipped] {
            let mut summary = summary(&[&text]);
            summary.file.clone_from(&text);
            let case = &mut summary.experiments[0];
            case.scenario.clone_from(&text);
            case.end(outcome, &text);
            (case.status, case.leak, case.report) = (Some(text.clone()), Some(text.clone()), Some(text.clone()));
            let page = page(&summary).unwrap();
            let allowed = |c: char| c == '\n' || (c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'));
            assert!(page.chars().all(allowed), "{page:?}");
            let mut reader = Reader::from_str(&page);
            let mut elements = 0;
            loop {
                match reader.read_event().unwrap() {
                    Event::Eof => break,
                    Event::Start(element) | Event::Empty(element) => {
                        elements += 1;
                        assert!(element.attributes().all(|attribute| attribute.is_ok()), "{page}");
                        assert_ne!(element.name().as_ref(), b"x", "{page}");
                    }
                    _ => {}
                }
            }
            assert_eq!(elements, 3 + 1 + 4 + 1, "{page}");
        }
    }
}
