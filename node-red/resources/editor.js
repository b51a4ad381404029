// The editor's lists of nodes, pools and models, filled with what is there right now. Loaded by each dialog.
(function () {
  if (window.orinocoEditor) return;

  $("<style>")
    .text(".orinoco-dialog .form-row > label:first-child { width: 125px; } .orinoco-dialog .form-row > label.orinoco-wide { width: 100%; }")
    .appendTo("head");

  /** Asks the runtime once for each opening of a dialog; the answer is {connected, isDeployed, nodes}. */
  function ask(url) {
    return new Promise((resolve) => {
      $.getJSON(url).done(resolve).fail(() => resolve({ connected: false, isDeployed: false, nodes: [] }));
    });
  }

  const none = { connected: false, isDeployed: false, nodes: [] };
  const isReal = (id) => typeof id === "string" && id !== "" && id !== "_ADD_";

  /** What the chosen orinoco-node sees. */
  function ofServer(id) {
    return isReal(id) ? ask(`orinoco/nodes/${encodeURIComponent(id)}`) : Promise.resolve(none);
  }

  /** What can be seen through a broker that no orinoco-node uses yet. */
  function ofBroker(id, root) {
    return isReal(id) ? ask(`orinoco/broker/${encodeURIComponent(id)}?root=${encodeURIComponent(root || "orinoco")}`) : Promise.resolve(none);
  }

  const unique = (names) => [...new Set(names.filter(Boolean))].sort();
  const modelsOf = (seen, only) => unique(seen.nodes.filter((node) => !only || node.name === only).flatMap((node) => node.models));
  const poolsOf = (seen) => unique(seen.nodes.flatMap((node) => node.pools));

  /** One entry of a list: a name, and in grey what there is to say of it. */
  function entry(name, remark) {
    const label = $("<div>", { class: "orinoco-entry" }).append($("<span>").text(name));
    if (remark) label.append($("<span>").css({ opacity: 0.65, marginLeft: "8px", fontSize: "0.9em" }).text(remark));
    return { value: name, label };
  }

  /** A text field with a list below it: typing stays possible, as a node may be switched off right now. */
  function list(field, entries) {
    const input = $(field);
    // The list opens at the first click, as a select's does, and not only when something is typed.
    input.on("click", () => input.trigger("keyup"));
    input.autoComplete({
      minLength: 0,
      search: (text) => {
        const wanted = text.trim().toLowerCase();
        const all = entries();
        const found = all.filter((item) => item.value.toLowerCase().includes(wanted));
        // A field that holds a whole name shows all the others as well.
        return all.some((item) => item.value.toLowerCase() === wanted) ? all : found;
      },
    });
  }

  /** The line below a list that says why it is empty. */
  function explain(place, seen, words) {
    let text = "";
    if (!seen.isDeployed) text = words("orinoco.editor.deployFirst");
    else if (!seen.connected) text = words("orinoco.editor.notConnected");
    else if (seen.nodes.length === 0) text = words("orinoco.editor.noneSeen");
    else text = seen.nodes.map((node) => `${node.name}: ${node.state}${node.active ? `, ${node.active}` : ""}`).join(" · ");
    $(place).text(text);
  }

  /** Fills model and node fields of a dialog whose server can change; words translates. */
  function follow(serverField, { model, node, seen: seenPlace, words }) {
    let seen = none;
    const load = async () => {
      seen = await ofServer($(serverField).val());
      if (seenPlace) explain(seenPlace, seen, words);
    };
    if (model) {
      list(model, () => modelsOf(seen).map((name) => {
        const active = seen.nodes.filter((each) => each.active === name).map((each) => each.name);
        return entry(name, active.length > 0 ? `${words("orinoco.editor.serves")} ${active.join(", ")}` : "");
      }));
    }
    if (node) list(node, () => seen.nodes.map((each) => entry(each.name, [each.state, each.board].filter(Boolean).join(", "))));
    $(serverField).on("change", load);
    load();
  }

  window.orinocoEditor = { ofServer, ofBroker, follow, list, entry, explain, modelsOf, poolsOf };
})();
