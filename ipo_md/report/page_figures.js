// Draws the figures of figures.py. The colours are those of Okabe and Ito;
// dashes and marks tell the lines apart without colour, too.
const COLORS = [
  '#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00'];
const DASHES = ['', '7 3', '2 3', '9 3 2 3'];
const MARKS = [
  r => `M${-r},0a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
  r => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  r => `M0,${-r - 1}L${r + 1},${r}H${-r - 1}Z`,
  r => `M0,${-r - 1}L${r + 1},0L0,${r + 1}L${-r - 1},0Z`];
const WIDTH = 400;
const HEIGHT = 240;
const LEFT = 52;
const BOTTOM = 38;
const MOST_MARKS = 50;

const color = style => COLORS[style % COLORS.length];
const lineStyle = style => ({
  stroke: color(style),
  'stroke-dasharray':
    DASHES[(Math.floor(style / COLORS.length) + style) % DASHES.length],
  'stroke-width': 2,
  fill: 'none',
});
const mark = (style, x, y, r = 3.5) => element('path', {
  d: MARKS[style % MARKS.length](r), fill: color(style),
  transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`});

function swatch(style) {
  return element('svg', {viewBox: '0 0 34 10', 'aria-hidden': 'true'},
    element('path', {d: 'M0,5L34,5', ...lineStyle(style)}), mark(style, 17, 5));
}

function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find(s => s * power >= rough) * power;
  const first = Math.ceil(low / size - 1e-9);
  return Array.from(
    {length: Math.floor(high / size + 1e-9) - first + 1},
    (_, n) => (first + n) * size);
}

const short = x => Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-3) ?
  x.toExponential(1) : String(Number(x.toPrecision(4)));

function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.04 || Math.abs(low) * 0.1 || 1;
  return [low - room, high + room];
}

// Makes the frame of a figure with its grid, and the maps from data to pixels.
function frame({title, x: xLabel, log, level}, points) {
  const along = v => log ? Math.log10(v) : v;
  const xs = points.map(([x]) => along(x));
  const [left, right] = range(xs);
  const heights = points.flatMap(([, y, ...bounds]) => [y, ...bounds]);
  const [bottom, top] = range(
    typeof level === 'number' ? [...heights, level] : heights);
  const x = v =>
    LEFT + (along(v) - left) / (right - left) * (WIDTH - LEFT - 8);
  const y = v => (HEIGHT - BOTTOM) * (1 - (v - bottom) / (top - bottom)) + 4;
  const svg = element('svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', tabindex: '0',
    'aria-label': `${title}. Use the arrow keys to read its points.`});
  for (const v of ticks(bottom, top)) {
    svg.append(
      element('line', {class: 'grid', x1: LEFT, x2: WIDTH, y1: y(v), y2: y(v)}),
      element('text', {
        x: LEFT - 6, y: y(v) + 4, 'text-anchor': 'end'}, short(v)));
  }
  const places = log ? [...new Set(points.map(([v]) => v))] :
    ticks(left, right);
  for (const v of places.slice(0, 8)) {
    svg.append(element('text', {
      x: x(v), y: HEIGHT - 19, 'text-anchor': 'middle'}, short(v)));
  }
  svg.append(element(
    'text', {x: WIDTH, y: HEIGHT - 3, 'text-anchor': 'end'}, xLabel));
  if (typeof level === 'number') {
    svg.append(element('line', {
      class: 'cross', x1: LEFT, x2: WIDTH, y1: y(level), y2: y(level)}));
  }
  return {svg, x, y, left, right, bottom, top};
}

function drawSeries({svg, x, y}, {name, style, points}, lines) {
  const group = element('g', {}, element('title', {}, name));
  if (lines) {
    const d = points.map(([s, v], n) =>
      `${n ? 'L' : 'M'}${x(s).toFixed(1)},${y(v).toFixed(1)}`).join('');
    group.append(element('path', {d, ...lineStyle(style)}));
  }
  for (const [s, v, low, high] of points) {
    if (low !== undefined) {
      group.append(element('line', {
        stroke: color(style), x1: x(s), x2: x(s), y1: y(low), y2: y(high)}));
    }
    if (points.length < MOST_MARKS) {
      group.append(mark(style, x(s), y(v), lines ? 2.5 : 4.5));
    }
  }
  svg.append(group);
}

// Lets the pointer and the arrow keys read all points at the nearest x.
function readable({svg, x, y}, series, xLabel) {
  const cross = element(
    'line', {class: 'cross', y1: 4, y2: HEIGHT - BOTTOM + 4});
  const readout = element('div', {class: 'readout', role: 'status'});
  const all = series.flatMap(({points}) => points);
  const places = [...new Set(all.map(([v]) => v))].sort((a, b) => a - b);
  let at = places.length;
  const read = index => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const here = places[at];
    cross.setAttribute('x1', x(here));
    cross.setAttribute('x2', x(here));
    svg.append(cross);
    readout.textContent = `${xLabel} ${short(here)}: ` + series.flatMap(
      ({name, points}) => points.filter(([v]) => v === here).map(
        ([, v, low, high]) => `${name} ${short(v)}` + (low === undefined ?
          '' : ` (${short(low)} to ${short(high)})`))).join('; ');
  };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const left = (event.clientX - box.left) / box.width * WIDTH;
    const top = (event.clientY - box.top) / box.height * HEIGHT;
    const away = all.map(([s, v]) => Math.hypot(x(s) - left, y(v) - top));
    read(places.indexOf(all[away.indexOf(Math.min(...away))][0]));
  });
  svg.addEventListener('keydown', event => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    event.preventDefault();
    read(at + (event.key === 'ArrowLeft' ? -1 : 1));
  });
  return readout;
}

// Draws one figure with the series of the runs that are shown; null if none.
function draw(figure, shown) {
  const series = figure.series.filter(
    ({run, points}) => points.length && (!run || shown.has(run)));
  if (!series.length) return null;
  const drawn = frame(figure, series.flatMap(({points}) => points));
  if (figure.diagonal) {
    const low = Math.max(drawn.left, drawn.bottom);
    const high = Math.min(drawn.right, drawn.top);
    drawn.svg.append(element('line', {
      class: 'cross', x1: drawn.x(low), y1: drawn.y(low),
      x2: drawn.x(high), y2: drawn.y(high)}));
  }
  series.forEach(each => drawSeries(drawn, each, figure.lines));
  const own = series.filter(({run}) => !run);
  const legend = element('ul', {class: 'legend'}, ...own.map(
    ({name, style}) => element('li', {}, swatch(style), ' ', name)));
  return element('figure', {},
    element('figcaption', {}, figure.title), drawn.svg,
    readable(drawn, series, figure.x), ...(own.length ? [legend] : []),
    files(figure.name));
}

const files = name => element('p', {class: 'files'},
  ...['png', 'csv'].map(kind => element(
    'a', {href: `figures/${name}.${kind}`, download: ''}, kind.toUpperCase())));

// Draws a checkbox for each run, and buttons that set many at once.
function drawLegend() {
  const styles = new Map(data.figures.flatMap(({series}) =>
    series.filter(({run}) => run).map(({run, style}) => [run, style])));
  const selected = new Set((data.sweep.runs ?? [])
    .filter(run => run.selected).map(run => run.name));
  const names = [...styles.keys()];
  const byDefault = name => !selected.size || selected.has(name);
  byId('legend').append(...names.map(name => element('li', {},
    element('label', {}, element('input', {
      type: 'checkbox', value: name, checked: byDefault(name) ? '' : undefined,
    }), ' ', swatch(styles.get(name)), ' ', name))));
  const boxes = [...byId('legend').querySelectorAll('input')];
  const choose = test => () => {
    boxes.forEach(box => { box.checked = test(box.value); });
    drawFigures();
  };
  const button = (label, test) =>
    element('button', {onclick: choose(test)}, label);
  byId('legend-buttons').append(
    button('All', () => true), button('None', () => false),
    ...(selected.size ? [button('Selected', name => selected.has(name))] : []));
  byId('legend').onchange = drawFigures;
}

function drawFigures() {
  const shown = new Set([...byId('legend').querySelectorAll('input:checked')]
    .map(box => box.value));
  for (const place of new Set(data.figures.map(figure => figure.place))) {
    if (place === 'other-curves' && !byId('more-curves').open) continue;
    byId(place).replaceChildren(...data.figures
      .filter(figure => figure.place === place)
      .map(figure => draw(figure, shown)).filter(figure => figure));
  }
}
