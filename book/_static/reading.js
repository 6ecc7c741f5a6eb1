// A figure is a button: a click or the Enter key shows it as large as the window; again, or Escape, closes it.
document.addEventListener("DOMContentLoaded", () => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged figure; Escape closes it");
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  for (const picture of document.querySelectorAll("main figure img")) {
    if (picture.closest("a, .simulator")) continue;
    const button = document.createElement("button");
    button.className = "enlarge";
    button.title = "Enlarge";
    picture.before(button);
    button.append(picture);
    button.addEventListener("click", () => {
      const large = picture.cloneNode();
      large.removeAttribute("style");
      dialog.replaceChildren(large);
      dialog.showModal();
    });
  }
  // A caveat in the margin is a note, not a part of the page of its own that would need a name.
  for (const note of document.querySelectorAll("aside.margin")) note.setAttribute("role", "note");
  // What scrolls sideways can be scrolled by the keyboard, too.
  for (const box of document.querySelectorAll("main .output, main .pst-scrollable-table-container, main .math, main pre"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
});
