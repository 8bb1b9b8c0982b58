// What is copied of a console block is its commands, without the prompts and what they print.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-clipboard-target]");
  const code = button && document.querySelector(button.dataset.clipboardTarget);
  if (code && code.querySelector(".gp")) {
    const commands = code.cloneNode(true);
    commands.querySelectorAll(".gp, .go").forEach((span) => span.remove());
    button.dataset.clipboardText = commands.textContent.split("\n").filter((line) => line.trim()).join("\n");
  }
}, true);
