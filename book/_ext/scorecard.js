// The scorecard's filter: which claims are shown, by kind and by verdict. Without a script all are.
(() => {
  const place = document.currentScript.previousElementSibling;
  const claims = () => [...document.querySelectorAll("details.claim")];
  const classOf = (claim, start) => [...claim.classList].find((name) => name.startsWith(start)).slice(start.length);
  const findings = ["measured", "predicted"];
  const status = place.querySelector("output");

  function select(label, start, first) {
    const values = [...new Set(claims().map((claim) => classOf(claim, start)))];
    const box = document.createElement("select");
    for (const [value, text] of [...first, ...values.map((value) => [value, value.replaceAll("-", " ")])])
      box.add(new Option(text, value));
    const holder = document.createElement("label");
    holder.append(`${label} `, box);
    place.insertBefore(holder, status);
    box.addEventListener("change", show);
    return (claim) => {
      const found = classOf(claim, start);
      return box.value === "all" || box.value === found || (box.value === "findings" && findings.includes(found));
    };
  }

  let tests = [];
  function show() {
    let shown = 0;
    for (const claim of claims()) {
      claim.hidden = !tests.every((test) => test(claim));
      shown += !claim.hidden;
    }
    for (const section of document.querySelectorAll("section:has(> details.claim)"))
      section.hidden = !section.querySelector("details.claim:not([hidden])");
    status.textContent = `${shown} of ${claims().length} claims are shown.`;
  }

  function open() {
    // a link to a claim shows it, whatever the filter says
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const claim = target && (target.closest("details.claim") || target.querySelector("details.claim"));
    if (!claim) return;
    claim.hidden = claim.closest("section").hidden = false;
    claim.open = true;
    claim.scrollIntoView();
  }

  document.addEventListener("DOMContentLoaded", () => {
    tests = [
      select("Kind", "kind-", [["findings", "findings (measured, predicted)"], ["all", "all"]]),
      select("Verdict", "verdict-", [["all", "all"]]),
    ];
    place.hidden = false;
    show();
    open();
    window.addEventListener("hashchange", open);
  });
})();
