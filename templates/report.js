"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);

  const svg = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const html = (name, className, parent, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };

  // Numbers for people.
  const short = (v) => {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return v.toExponential(2);
    if (size >= 1e3) return Number(v.toPrecision(4)).toLocaleString("en");
    return String(Number(v.toPrecision(4)));
  };
  const clock = (s) => {
    s = Math.round(s);
    const two = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(s / 3600);
    return (hours ? hours + ":" + two(Math.floor(s / 60) % 60) : Math.floor(s / 60)) + ":" + two(s % 60);
  };

  const ticks = (low, high, count) => {
    const raw = (high - low) / Math.max(1, count);
    if (!(raw > 0)) return [low];
    const power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const out = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) {
      out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    }
    return out;
  };
  const timeTicks = (high, count) => {
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
    const step = steps.find((s) => high / s <= count) || Math.ceil(high / count / 86400) * 86400;
    const out = [];
    for (let v = 0; v <= high; v += step) out.push(v);
    return out;
  };
  const logTicks = (low, high) => {
    const out = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of [1, 2, 5]) {
        const v = m * Math.pow(10, p);
        if (v >= low * 0.999 && v <= high * 1.001) out.push(v);
      }
    }
    return out.length > 8 ? out.filter((v) => /^1/.test(v.toExponential())) : out;
  };

  const line = (xs, ys, x, y, log) => {
    let path = "", pen = false;
    for (let i = 0; i < xs.length; i++) {
      const v = ys[i];
      if (v === null || (log && v <= 0)) { pen = false; continue; }
      path += (pen ? "L" : "M") + x(xs[i]).toFixed(1) + " " + y(v).toFixed(1);
      pen = true;
    }
    return path;
  };
  const area = (xs, low, high, x, y, log) => {
    let path = "", from = 0;
    const good = (i) => low[i] !== null && (!log || low[i] > 0);
    while (from < xs.length) {
      if (!good(from)) { from++; continue; }
      let to = from;
      while (to + 1 < xs.length && good(to + 1)) to++;
      for (let i = from; i <= to; i++) path += (i === from ? "M" : "L") + x(xs[i]).toFixed(1) + " " + y(high[i]).toFixed(1);
      for (let i = to; i >= from; i--) path += "L" + x(xs[i]).toFixed(1) + " " + y(low[i]).toFixed(1);
      path += "Z";
      from = to + 1;
    }
    return path;
  };
  const nearest = (xs, value) => {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < value) low = middle + 1; else high = middle;
    }
    return low > 0 && value - xs[low - 1] < xs[low] - value ? low - 1 : low;
  };

  // Redraws when the width changes; hands out pointer and keyboard as a place along x.
  const interactive = (box, height, draw) => {
    let drawn = 0;
    const again = () => {
      const width = Math.max(240, box.clientWidth);
      drawn = width;
      box.replaceChildren();
      const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0 }, box);
      const tip = html("div", "tip", box);
      tip.hidden = true;
      const chart = draw(root, width, height, tip);
      if (!chart) return;
      let place = -1;
      const show = (index) => {
        place = Math.max(0, Math.min(chart.count - 1, index));
        chart.show(place);
        tip.hidden = false;
        const at = chart.at(place), half = tip.offsetWidth;
        tip.style.left = Math.max(0, Math.min(width - half, at > width / 2 ? at - half - 14 : at + 14)) + "px";
      };
      const hide = () => { tip.hidden = true; place = -1; chart.hide(); };
      root.addEventListener("pointermove", (event) => show(chart.find(event.clientX - root.getBoundingClientRect().left)));
      root.addEventListener("pointerdown", (event) => show(chart.find(event.clientX - root.getBoundingClientRect().left)));
      root.addEventListener("pointerleave", hide);
      root.addEventListener("blur", hide);
      root.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        show(place < 0 ? (by > 0 ? 0 : chart.count - 1) : place + by * (event.shiftKey ? 10 : 1));
      });
    };
    new ResizeObserver(() => { if (Math.max(240, box.clientWidth) !== drawn) again(); }).observe(box);
    again();
    return again;
  };

  const rowOf = (tip, mark, text) => {
    const row = html("div", "", tip);
    html("i", mark, row);
    row.appendChild(document.createTextNode(text));
  };

  const curveChart = (spec) => {
    const box = document.getElementById("chart-" + spec.id);
    if (!box) return;
    let log = false;
    const redraw = interactive(box, 280, (root, width, height, tip) => {
      root.setAttribute("aria-label", spec.title + " over steps");
      const narrow = width < 520;
      const right = narrow ? 16 : 96, left = 56, top = 14, bottom = 38;
      const values = [];
      for (const s of spec.series) for (const part of [s.low, s.high]) for (const v of part) if (v !== null && (!log || v > 0)) values.push(v);
      if (!values.length) return null;
      let low = Math.min(...values), high = Math.max(...values);
      if (spec.zero && !log) low = 0;
      if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
      if (!log) { const room = (high - low) * 0.05; high += room; if (!spec.zero) low -= low > 0 ? Math.min(room, low) : room; }
      const last = Math.max(...spec.series.map((s) => s.steps[s.steps.length - 1]));
      const first = Math.min(...spec.series.map((s) => s.steps[0]));
      const span = Math.max(1, last - first);
      const x = (v) => left + (v - first) / span * (width - left - right);
      const scale = log ? Math.log10 : (v) => v;
      const y = (v) => height - bottom - (scale(v) - scale(low)) / (scale(high) - scale(low)) * (height - top - bottom);
      for (const v of log ? logTicks(low, high) : ticks(low, high, 5)) {
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, root);
        svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, root, short(v));
      }
      for (const v of ticks(first, last, narrow ? 4 : 8)) {
        if (v % 1) continue;
        svg("text", { x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, root, v.toLocaleString("en"));
      }
      svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, root);
      svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, root, "step");
      for (const mark of spec.marks) {
        svg("line", { class: "mark " + mark.tone, x1: x(mark.step), x2: x(mark.step), y1: height - bottom - (mark.tone === "save" ? 7 : height - top - bottom), y2: height - bottom, "stroke-dasharray": mark.tone === "save" ? "" : "2 3" }, root);
      }
      const labels = [];
      for (const s of spec.series) {
        if (s.lines.length > 1) svg("path", { class: "band-" + s.tone, d: area(s.steps, s.low, s.high, x, y, log) }, root);
        if (spec.series.length === 1 && s.lines.length > 1) {
          for (const one of s.lines) if (!one.slow) svg("path", { class: "thin", d: line(s.lineSteps, one.values, x, y, log) }, root);
          for (const one of s.lines) if (one.slow) {
            svg("path", { class: "slow", d: line(s.lineSteps, one.values, x, y, log) }, root);
            const at = one.values.reduce((found, v, i) => (v === null ? found : i), -1);
            const slow = s.lines.filter((other) => other.slow).length;
            if (at >= 0) labels.push({ y: y(one.values[at]), x: x(s.lineSteps[at]), text: slow > 3 ? slow + " slow ranks" : "rank " + one.rank, tone: "slow" });
          }
        }
        svg("path", { class: "middle " + s.tone, d: line(s.steps, s.middle, x, y, log) }, root);
        const at = s.middle.reduce((found, v, i) => (v === null ? found : i), -1);
        if (at >= 0) labels.push({ y: y(s.middle[at]), x: x(s.steps[at]), text: spec.series.length > 1 ? s.name : s.lines.length === 1 ? "rank " + s.lines[0].rank : "median", tone: s.tone, keep: true });
      }
      // Labels at the ends of the lines; what would cover another is left out.
      if (!narrow) {
        const taken = [];
        labels.sort((one, other) => (other.keep ? 1 : 0) - (one.keep ? 1 : 0));
        for (const label of labels) {
          if (taken.some((other) => Math.abs(other.y - label.y) < 13 && Math.abs(other.x - label.x) < 80)) continue;
          taken.push(label);
          svg("text", { class: "label " + label.tone, x: label.x + 6, y: label.y + 4 }, root, label.text);
        }
      }
      const cross = svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }, root);
      const dots = spec.series.map((s) => svg("circle", { r: 4, class: s.tone, visibility: "hidden" }, root));
      const grid = spec.series.reduce((a, b) => (b.steps.length > a.steps.length ? b : a)).steps;
      return {
        count: grid.length,
        at: (i) => x(grid[i]),
        find: (px) => nearest(grid, first + (px - left) / (width - left - right) * span),
        hide: () => { cross.setAttribute("visibility", "hidden"); dots.forEach((d) => d.setAttribute("visibility", "hidden")); },
        show: (i) => {
          const step = grid[i];
          cross.setAttribute("x1", x(step)); cross.setAttribute("x2", x(step)); cross.setAttribute("visibility", "visible");
          tip.replaceChildren();
          html("b", "", tip, (grid.length < last ? "around step " : "step ") + step.toLocaleString("en"));
          spec.series.forEach((s, n) => {
            const k = nearest(s.steps, step), v = s.middle[k];
            const inside = step <= s.steps[s.steps.length - 1] && v !== null;
            dots[n].setAttribute("visibility", inside ? "visible" : "hidden");
            if (!inside) return rowOf(tip, s.tone, (spec.series.length > 1 ? s.name + " " : "") + "–");
            dots[n].setAttribute("cx", x(s.steps[k])); dots[n].setAttribute("cy", y(v));
            rowOf(tip, s.tone, (spec.series.length > 1 ? s.name + " " : s.lines.length > 1 ? "median " : "") + short(v) + " " + spec.unit);
            if (spec.series.length === 1 && s.lines.length > 1) {
              rowOf(tip, "", "highest " + short(s.high[k]) + ", rank " + s.highRank[k]);
              rowOf(tip, "", "lowest " + short(s.low[k]) + ", rank " + s.lowRank[k]);
            }
          });
          for (const mark of spec.marks) if (Math.abs(x(mark.step) - x(step)) < 3) html("div", mark.tone === "save" ? "soft" : mark.tone, tip, mark.text);
        },
      };
    });
    const button = document.getElementById("log-" + spec.id);
    if (button) button.addEventListener("click", () => {
      log = !log;
      button.setAttribute("aria-pressed", String(log));
      redraw();
    });
  };

  const rankChart = (spec) => {
    const box = document.getElementById("chart-ranks");
    if (!box || !spec) return;
    interactive(box, 200, (root, width, height, tip) => {
      root.setAttribute("aria-label", "step time of each rank");
      const left = 56, right = 12, top = 14, bottom = 38, count = spec.ranks.length;
      const high = Math.max(...spec.values) * 1.1;
      const x = (i) => left + (i + 0.5) / count * (width - left - right);
      const y = (v) => height - bottom - v / high * (height - top - bottom);
      for (const v of ticks(0, high, 4)) {
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }, root);
        svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, root, short(v) + " s");
      }
      svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }, root);
      for (const v of ticks(0, count - 1, width < 520 ? 5 : 12)) {
        if (v % 1 === 0) svg("text", { x: x(v), y: height - bottom + 18, "text-anchor": "middle" }, root, spec.ranks[v]);
      }
      svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, root, "rank");
      svg("line", { class: "cross", x1: left, x2: width - right, y1: y(spec.middle), y2: y(spec.middle) }, root);
      const size = Math.max(1.5, Math.min(4, (width - left - right) / count / 2.4));
      spec.values.forEach((v, i) => svg("circle", { cx: x(i), cy: y(v), r: size, class: spec.slow[i] ? "slow" : "a" }, root));
      const ring = svg("circle", { r: size + 3, class: "a", "fill-opacity": 0.3, visibility: "hidden" }, root);
      return {
        count,
        at: x,
        find: (px) => Math.round((px - left) / (width - left - right) * count - 0.5),
        hide: () => ring.setAttribute("visibility", "hidden"),
        show: (i) => {
          ring.setAttribute("cx", x(i)); ring.setAttribute("cy", y(spec.values[i])); ring.setAttribute("visibility", "visible");
          tip.replaceChildren();
          html("b", "", tip, "rank " + spec.ranks[i]);
          html("div", "", tip, spec.hosts[i]);
          rowOf(tip, spec.slow[i] ? "slow" : "a", short(spec.values[i]) + " s a step, " + (spec.values[i] / spec.middle).toFixed(2) + " × usual");
        },
      };
    });
  };

  const laneChart = (spec) => {
    const box = document.getElementById("chart-lanes");
    if (!box || !spec) return;
    const row = spec.lanes.length > 16 ? 15 : 20;
    interactive(box, spec.lanes.length * row + 44, (root, width, height, tip) => {
      root.setAttribute("aria-label", "phases of each host over time");
      const longest = Math.max(...spec.lanes.map((lane) => lane.host.length));
      const left = Math.min(width < 520 ? 100 : 170, longest * 7 + 12), right = 12, top = 4, bottom = 36;
      const x = (v) => left + v / spec.end * (width - left - right);
      for (const v of timeTicks(spec.end, width < 520 ? 4 : 9)) {
        svg("line", { class: "grid", x1: x(v), x2: x(v), y1: top, y2: height - bottom }, root);
        svg("text", { x: x(v), y: height - bottom + 17, "text-anchor": "middle" }, root, clock(v));
      }
      svg("text", { x: width - right, y: height - 3, "text-anchor": "end" }, root, "time since launch");
      const most = Math.floor((left - 8) / 6.8);
      spec.lanes.forEach((lane, n) => {
        const y = top + n * row;
        const name = lane.host.length > most ? "…" + lane.host.slice(1 - most) : lane.host;
        svg("text", { x: left - 8, y: y + row / 2 + 4, "text-anchor": "end" }, root, name);
        for (const [phase, from, to] of lane.phases) {
          svg("rect", { class: "ph-" + phase, x: x(from), y: y + 3, width: Math.max(1, x(to) - x(from)), height: row - 6, rx: 1 }, root);
        }
      });
      for (const mark of spec.marks) svg("line", { class: "mark " + mark.tone, x1: x(mark.at), x2: x(mark.at), y1: top, y2: height - bottom }, root);
      const cross = svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }, root);
      const count = 200, time = (i) => i / (count - 1) * spec.end;
      return {
        count,
        at: (i) => x(time(i)),
        find: (px) => Math.round((px - left) / (width - left - right) * (count - 1)),
        hide: () => cross.setAttribute("visibility", "hidden"),
        show: (i) => {
          const at = time(i), counts = {};
          cross.setAttribute("x1", x(at)); cross.setAttribute("x2", x(at)); cross.setAttribute("visibility", "visible");
          for (const lane of spec.lanes) {
            const found = lane.phases.find(([, from, to]) => at >= from && at <= to);
            const name = found ? found[0] : "no phase";
            counts[name] = (counts[name] || 0) + 1;
          }
          tip.replaceChildren();
          html("b", "", tip, clock(at));
          for (const name in counts) rowOf(tip, "ph-" + name, spec.lanes.length > 1 ? `${counts[name]} × ${name}` : name);
          for (const mark of spec.marks) if (Math.abs(x(mark.at) - x(at)) < 6) html("div", mark.tone, tip, mark.text);
        },
      };
    });
  };

  data.charts.forEach(curveChart);
  rankChart(data.ranks);
  laneChart(data.lanes);
  document.documentElement.dataset.ready = "yes";
})();
