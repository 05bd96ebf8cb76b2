/* The campaign's panel in OHIF: connects the viewer to the server that served it, opens the next image, runs Hermes
 * for chosen structures, and submits the label with one click. Plain JavaScript, no build.
 *
 * The viewer's own objects are used through its globals: `services`, `commandsManager`, `cornerstone`,
 * `cornerstoneTools`. Labels cross the network as NIfTI with their geometry, read from the DICOM of every slice, so
 * that the server can check them; names, never numbers, say what a voxel is.
 */
(() => {
  'use strict';

  const MODE = '/ohif/monai-label';
  const MODE_OF_SINGLE_IMAGES = '/ohif/segmentation'; // the other one shows volumes only
  const SEGMENTATION = '1'; // the id that MONAI Label's own panel draws into
  const NAME_KEY = 'hermes.annotator';
  const OFFER_KEY = 'hermes.offer'; // why `Next image` has opened the image: the page is loaded anew in between
  const REFRESH_MS = 15000;
  const WAIT_MS = 400;
  const NO_VIEW_MS = 20000;

  // MONAI Label's panel takes port 8000 for granted; this cookie tells it better.
  document.cookie = `MONAILABEL_SERVER_URL=${escape(`${location.origin}/`)}; path=/ohif`;
  if (window.config) {
    window.config.showWarningMessageForCrossOrigin = false;
  }

  const state = {
    campaign: null, // what GET /hermes/viewer says
    chosen: new Set(), // names of structures that `Segment` asks for; empty: all
    absent: new Set(), // names that the annotator has declared absent
    modelVersion: null, // that drew in this image
    unsent: false, // drawn since the last submission
    leaving: false, // `Next image`, `Skip` or `Load label` was clicked once although something is unsent
    about: null, // what GET /hermes/viewer/image says of the image on screen
    busy: false,
    series: null, // SeriesInstanceUID on screen
    noViewSince: null, // since when an image was asked for and none is shown
    loaded: '', // what was drawn by itself when the image was opened
    drawing: false, // we change voxels ourselves
  };

  // ------------------------------------------------------------------------------------------------- server

  async function api(path, options) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      throw new Error('The server cannot be reached.');
    }
    if (!answer.ok) {
      let reason = `HTTP ${answer.status}`;
      try {
        reason = (await answer.json()).detail ?? reason;
      } catch (error) { /* no JSON: the status has to do */ }
      throw new Error(typeof reason === 'string' ? reason : JSON.stringify(reason));
    }
    return answer;
  }

  const annotator = () => state.campaign?.login || localStorage.getItem(NAME_KEY) || '';

  function rememberAnnotator(name) {
    localStorage.setItem(NAME_KEY, name);
    // Segmentations that the viewer's own export stores through our proxy are attributed by it.
    document.cookie = `hermes_annotator=${encodeURIComponent(name)}; path=/; max-age=31536000; samesite=strict`;
  }

  async function refresh() {
    state.campaign = await (await api('/hermes/viewer')).json();
    if (state.series && !state.busy) { // it may have been rejected, or reserved for somebody else, meanwhile
      await lookAtImage().catch(() => { state.about = null; }); // a series of no campaign: said when it was opened
    }
    render();
  }

  /** Asks what there is of the image on screen: who has it, why to look at it again, its label. */
  async function lookAtImage() {
    const image = imageId();
    const query = new URLSearchParams({ image, client_id: annotator() });
    const about = await (await api(`/hermes/viewer/image?${query}`)).json();
    if (image === imageId()) { // another one may have been opened meanwhile
      state.about = about;
    }
  }

  // ------------------------------------------------------------------------------------------------- viewer

  const services = () => window.services;

  /** The layout of the viewports; undefined while the viewer has none. */
  function viewports() {
    try {
      return services()?.viewportGridService?.getState();
    } catch (error) { // its service has no implementation before the first layout
      return undefined;
    }
  }

  function viewportId() {
    return viewports()?.activeViewportId;
  }

  /** The image on screen: the display set of the active viewport, or what its segmentation was drawn on. */
  function displaySet() {
    const grid = viewports();
    const uid = grid?.viewports.get(grid.activeViewportId)?.displaySetInstanceUIDs?.[0];
    const shown = uid && services().displaySetService.getDisplaySetByUID(uid);
    const source = shown?.referencedDisplaySetInstanceUID;
    return (source && services().displaySetService.getDisplaySetByUID(source)) || shown || null;
  }

  /** The id under which the server knows the image on screen. */
  function imageId() {
    const series = displaySet()?.SeriesInstanceUID;
    const asked = imageAsked();
    return asked && (!series || asked.split('~')[0] === series) ? asked : series;
  }

  /** The image that `Next image` has opened. */
  const imageAsked = () => new URLSearchParams(location.search).get('hermesImage');

  function labelmapImages(segmentation) {
    const labelmap = segmentation?.representationData?.Labelmap;
    const ids = labelmap?.imageIds ?? (labelmap?.volumeId && window.cornerstone.cache.getVolume(labelmap.volumeId)?.imageIds);
    return (ids ?? []).map((id) => window.cornerstone.cache.getImage(id)).filter(Boolean);
  }

  function seriesOf(image) {
    return window.cornerstone.metaData.get('instance', image.referencedImageId)?.SeriesInstanceUID;
  }

  /** The segmentation of the image on screen, or undefined. */
  function segmentation() {
    const series = displaySet()?.SeriesInstanceUID;
    const all = services()?.segmentationService?.getSegmentations() ?? [];
    const active = services()?.segmentationService?.getActiveSegmentation?.(viewportId());
    const fitting = all.filter((one) => {
      const images = labelmapImages(one);
      return images.length && seriesOf(images[0]) === series;
    });
    return fitting.find((one) => one.segmentationId === active?.segmentationId)
      ?? fitting.find((one) => one.segmentationId === SEGMENTATION) ?? fitting[0];
  }

  /** The same, made with the campaign's structures, their numbers and colours, where there is none yet. */
  async function ensureSegmentation() {
    const found = segmentation();
    if (found) {
      return found;
    }
    const taken = services().segmentationService.getSegmentation(SEGMENTATION);
    const id = taken ? `hermes-${displaySet().SeriesInstanceUID}` : SEGMENTATION;
    const segments = {};
    state.campaign.structures.forEach(({ name, value, colour }, place) => {
      segments[value] = { segmentIndex: value, label: name, active: place === 0, locked: false, color: [...colour, 255] };
    });
    await window.commandsManager.runCommand('loadSegmentationsForViewport', {
      segmentations: [{ segmentationId: id, representation: { type: 'Labelmap' }, config: { label: 'Segmentations', segments } }],
      viewportId: viewportId(),
    });
    await until(segmentation);
    paint();
    return segmentation();
  }

  /** Gives every segment with the name of a structure the structure's colour, in every viewport. */
  function paint() {
    const colours = new Map(state.campaign.structures.map(({ name, colour }) => [name, [...colour, 255]]));
    for (const one of services().segmentationService.getSegmentations()) {
      for (const id of viewports().viewports.keys()) {
        const shown = services().segmentationService.getSegmentationRepresentations(id, { segmentationId: one.segmentationId });
        if (!shown?.length) {
          continue;
        }
        for (const segment of segmentsOf(one)) {
          const colour = colours.get(segment.label);
          const now = services().segmentationService.getSegmentColor(id, one.segmentationId, segment.segmentIndex);
          if (colour && String(now) !== String(colour)) {
            services().segmentationService.setSegmentColor(id, one.segmentationId, segment.segmentIndex, colour);
          }
        }
      }
    }
  }

  function segmentsOf(one) {
    return Object.values(one.segments ?? {}).filter((segment) => segment && segment.segmentIndex > 0);
  }

  /** The labelmap as slices in the order of their positions, with the geometry that DICOM gives them.
   *
   * `grid` takes (column, row, slice) to millimetres (LPS); it is the server's grid of the series.
   */
  function slices(one) {
    const placed = labelmapImages(one).map((image) => {
      const plane = window.cornerstone.metaData.get('imagePlaneModule', image.referencedImageId);
      return { image, plane, pixels: image.voxelManager?.getScalarData?.() ?? image.getPixelData() };
    });
    if (!placed.length) {
      throw new Error('There is no labelmap for this image. Scroll through it once, then try again.');
    }
    const vector = (v) => [...v].map(Number);
    const { rowCosines, columnCosines, rowPixelSpacing, columnPixelSpacing, columns, rows } = placed[0].plane;
    const across = vector(rowCosines);
    const down = vector(columnCosines);
    const normal = cross(across, down);
    for (const slice of placed) {
      slice.position = vector(slice.plane.imagePositionPatient);
      slice.height = dot(slice.position, normal);
    }
    placed.sort((a, b) => a.height - b.height);
    const [first, last] = [placed[0], placed[placed.length - 1]];
    const thickness = Number(first.plane.sliceThickness) || 1;
    const step = placed.length > 1
      ? first.position.map((v, axis) => (last.position[axis] - v) / (placed.length - 1))
      : normal.map((v) => v * thickness);
    const [width, height] = [Number(columns), Number(rows)];
    return {
      slices: placed,
      size: [width, height, placed.length],
      grid: {
        axes: [across.map((v) => v * Number(columnPixelSpacing)), down.map((v) => v * Number(rowPixelSpacing)), step],
        origin: first.position,
      },
    };
  }

  function tellViewer(one) {
    window.cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(one.segmentationId);
  }

  // --------------------------------------------------------------------------------------------- arithmetic

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

  /** Where the voxels of `inner` lie in `outer`: for each axis of `inner` the axis of `outer` and its direction.
   *
   * Throws where one grid is not the other with its axes exchanged or turned round.
   */
  function placement(inner, innerSize, outer, outerSize) {
    const [a, b, c] = outer.axes;
    const volume = dot(a, cross(b, c));
    const dual = [cross(b, c), cross(c, a), cross(a, b)].map((v) => v.map((x) => x / volume));
    const index = (v) => dual.map((d) => dot(d, v));
    const start = index(inner.origin.map((v, axis) => v - outer.origin[axis]));
    const strides = [1, outerSize[0], outerSize[0] * outerSize[1]];
    const steps = inner.axes.map(index);
    const fits = steps.every((step, axis) => {
      const along = step.findIndex((v) => Math.abs(Math.abs(v) - 1) < 0.01);
      return along >= 0 && step.every((v, other) => other === along || Math.abs(v) < 0.01) && innerSize[axis] === outerSize[along];
    });
    const corner = start.map(Math.round);
    if (!fits || start.some((v, axis) => Math.abs(v - corner[axis]) > 0.1)) {
      throw new Error('The label map of the server is not on the grid of the image on screen. Please report this series.');
    }
    return {
      offset: corner.reduce((sum, v, axis) => sum + v * strides[axis], 0),
      step: steps.map((step) => step.reduce((sum, v, axis) => sum + Math.round(v) * strides[axis], 0)),
    };
  }

  // -------------------------------------------------------------------------------------------------- NIfTI

  async function gunzip(blob) {
    const stream = blob.stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).arrayBuffer();
  }

  const TYPES = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 256: Int8Array, 512: Uint16Array, 768: Uint32Array };

  async function readNifti(blob) {
    const buffer = await gunzip(blob);
    const view = new DataView(buffer);
    const number = (at) => view.getFloat32(at, true);
    if (view.getInt32(0, true) !== 348 || !TYPES[view.getInt16(70, true)]) {
      throw new Error('The server answered something else than a label map.');
    }
    const size = [42, 44, 46].map((at) => view.getInt16(at, true));
    const rows = [280, 296].map((at) => [0, 4, 8, 12].map((next) => -number(at + next))); // RAS to LPS
    rows.push([0, 4, 8, 12].map((next) => number(312 + next)));
    const column = (axis) => rows.map((row) => row[axis]);
    const voxels = new TYPES[view.getInt16(70, true)](buffer.slice(number(108)), 0, size[0] * size[1] * size[2]);
    return { size, voxels, grid: { axes: [column(0), column(1), column(2)], origin: column(3) } };
  }

  async function writeNifti({ slices: placed, size, grid }) {
    const header = new ArrayBuffer(352);
    const view = new DataView(header);
    const float = (at, value) => view.setFloat32(at, value, true);
    const short = (at, value) => view.setInt16(at, value, true);
    view.setInt32(0, 348, true);
    [3, ...size, 1, 1, 1, 1].forEach((value, place) => short(40 + 2 * place, value));
    short(70, 2); // unsigned bytes
    short(72, 8);
    [1, ...grid.axes.map((axis) => Math.hypot(...axis))].forEach((value, place) => float(76 + 4 * place, value));
    float(108, 352);
    float(112, 1);
    view.setUint8(123, 2); // millimetres
    short(254, 1); // the affine below is scanner anatomical
    [0, 1, 2].forEach((world) => {
      const sign = world < 2 ? -1 : 1; // LPS to RAS
      [...grid.axes, grid.origin].forEach((axis, place) => float(280 + 16 * world + 4 * place, sign * axis[world]));
    });
    [0x6e, 0x2b, 0x31].forEach((byte, place) => view.setUint8(344 + place, byte)); // "n+1"
    const bodies = placed.map(({ pixels }) => Uint8Array.from(pixels));
    const stream = new Blob([header, ...bodies]).stream().pipeThrough(new CompressionStream('gzip'));
    return new Response(stream).blob();
  }

  // ------------------------------------------------------------------------------------------------ actions

  async function segment() {
    const names = state.campaign.structures.map(({ name }) => name).filter((name) => !state.chosen.size || state.chosen.has(name));
    const image = imageId();
    const one = await ensureSegmentation();
    const form = new FormData();
    const params = { result_extension: '.nii.gz', client_id: annotator() || null, ...(state.chosen.size ? { structures: names } : {}) };
    form.append('params', JSON.stringify(params));
    say(`Segmenting ${state.chosen.size ? names.join(', ') : 'all structures'} ...`);
    const model = encodeURIComponent(state.campaign.models[0]);
    const answer = await api(`/infer/${model}?image=${encodeURIComponent(image)}&output=all`, { method: 'POST', body: form });
    const parts = await answer.formData();
    const about = JSON.parse(await textOf(parts.get('params')));
    const drawn = draw(one, await readNifti(parts.get('file') ?? parts.get('image')), about.label_names, names);
    state.modelVersion = about.model_version ?? null;
    state.unsent = true;
    const waiting = about.not_learned_yet?.length ? ` Not learned yet: ${about.not_learned_yet.join(', ')}.` : '';
    say(`${drawn} of ${names.length} structures drawn by ${about.model_version ?? 'the model'}.${waiting} Correct them, then submit.`, 'good');
  }

  const textOf = (part) => (typeof part === 'string' ? part : part.text());

  /** Draws the label that the image has already, in place of what is drawn. */
  async function loadLabel() {
    const { label } = state.about;
    const one = await ensureSegmentation();
    const query = new URLSearchParams({ image: state.about.image, id: label.id });
    const answer = await api(`/hermes/viewer/label?${query}`);
    const { values, model_version: version } = JSON.parse(answer.headers.get('hermes-label-names'));
    const known = state.campaign.structures.map(({ name }) => name);
    const left = Object.keys(values).filter((name) => !known.includes(name));
    const drawn = draw(one, await readNifti(await answer.blob()), values, known);
    state.absent = new Set(label.absent.filter((name) => known.includes(name)));
    list.querySelectorAll('li').forEach((item) => {
      item.querySelector('.hermes-absent').checked = state.absent.has(item.dataset.name);
    });
    state.modelVersion = label.source === 'original' ? version : null;
    state.unsent = false; // it is what the server has
    const absent = state.absent.size ? `, ${state.absent.size} marked absent` : '';
    const others = left.length ? ` Not labelled any more and left out: ${left.join(', ')}.` : '';
    return `${drawn} structure${drawn === 1 ? '' : 's'} drawn${absent} from ${titleOf(label)}.${others}`;
  }

  async function load() {
    askBeforeLeaving('Load label');
    say(`${await loadLabel()} Correct them, then submit.`, 'good');
  }

  const titleOf = (label) => (label.source === 'original'
    ? `what ${label.model_version ?? 'the model'} drew ahead` : `label ${label.version} by ${label.own ? 'you' : label.annotator}`);

  /** What is drawn by itself when an image is opened: one's own label that is to be corrected, else the model's. */
  const comesByItself = ({ label, revisits }) => Boolean(label)
    && (label.source === 'original' || (label.own && revisits.some(({ yours }) => yours)));

  /** Draws the server's label map: the asked structures anew, what is drawn of others stays. Structures with a voxel. */
  function draw(one, answer, values, names) {
    const indices = new Map(segmentsOf(one).map((segment) => [segment.label, segment.segmentIndex]));
    const table = new Uint8Array(256); // value of the server -> segment
    const replaced = new Uint8Array(256);
    for (const name of names) {
      const index = indices.get(name) ?? addSegment(one, name, indices);
      replaced[index] = 1;
      if (values[name]) {
        table[values[name]] = index;
      }
    }
    const { slices: placed, size, grid } = slices(one);
    const { offset, step } = placement(grid, size, answer.grid, answer.size);
    const seen = new Set();
    state.drawing = true;
    placed.forEach(({ image, pixels }, k) => {
      for (let j = 0, at = 0; j < size[1]; j += 1) {
        let from = offset + k * step[2] + j * step[1];
        for (let i = 0; i < size[0]; i += 1, at += 1, from += step[0]) {
          const now = pixels[at];
          if (now === 0 || replaced[now]) {
            pixels[at] = table[answer.voxels[from]];
            seen.add(pixels[at]);
          }
        }
      }
      image.voxelManager?.setScalarData?.(pixels);
    });
    tellViewer(one);
    state.drawing = false;
    seen.delete(0);
    return seen.size;
  }

  function addSegment(one, name, indices) {
    const free = Math.max(0, ...indices.values()) + 1;
    services().segmentationService.addSegment(one.segmentationId, { segmentIndex: free, label: name });
    indices.set(name, free);
    return free;
  }

  function voxelsPerSegment(placed) {
    const counts = new Uint32Array(256);
    placed.forEach(({ pixels }) => pixels.forEach((value) => { counts[value] += 1; }));
    return counts;
  }

  async function submit() {
    const image = imageId();
    const one = segmentation();
    if (!one) {
      throw new Error('There is nothing to submit yet: segment the image or draw in it first.');
    }
    const label = slices(one);
    const counts = voxelsPerSegment(label.slices);
    const names = new Map(segmentsOf(one).map((segment) => [segment.segmentIndex, segment.label]));
    const used = [...counts.keys()].filter((index) => index > 0 && counts[index] > 0);
    if (!used.length && !state.absent.size) {
      throw new Error('Nothing is drawn. Draw something, or tick "absent" for what was looked for and is not there.');
    }
    const params = {
      label_info: used.map((index) => ({ name: names.get(index) ?? `segment ${index}`, idx: index })),
      absent: [...state.absent],
      client_id: annotator(),
      client: 'OHIF',
      ...(state.modelVersion ? { model_version: state.modelVersion } : {}),
    };
    const form = new FormData();
    form.append('params', JSON.stringify(params));
    form.append('label', await writeNifti(label), 'label.nii.gz');
    say('Submitting ...');
    await api(`/datastore/label?image=${encodeURIComponent(image)}`, { method: 'PUT', body: form });
    state.unsent = false;
    await refresh();
    await lookAtImage();
    const { total, completed } = state.campaign.images;
    say(`Submitted: ${params.label_info.map(({ name }) => name).concat(params.absent.map((name) => `no ${name}`)).join(', ')}. `
      + `${completed} of ${total} images are labelled.`, 'good');
  }

  function isDrawn() {
    try {
      return slices(segmentation()).slices.some(({ pixels }) => pixels.some((value) => value > 0));
    } catch (error) { // there is no labelmap yet
      return false;
    }
  }

  /** Whether voxels would be lost by leaving: making an empty labelmap is a change of it, too. */
  const isUnsent = () => state.unsent && isDrawn();

  function askBeforeLeaving(button) {
    if (isUnsent() && !state.leaving) {
      state.leaving = true;
      throw new Error(`What is drawn is not submitted. Click "${button}" again to leave it.`);
    }
  }

  async function next() {
    askBeforeLeaving('Next image');
    say('Asking for the next image ...');
    const strategy = encodeURIComponent(state.campaign.strategies[0]);
    const answer = await api(`/activelearning/${strategy}`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ client_id: annotator() }),
    });
    const sample = await answer.json();
    if (!sample.id) {
      say(sample.detail ?? 'There is no image left to label.');
      return;
    }
    sessionStorage.setItem(OFFER_KEY, JSON.stringify({ id: sample.id, reason: sample.reason, missing: sample.missing ?? [] }));
    await open(sample.id);
  }

  async function skip() {
    const field = part('reason');
    if (!field.value.trim()) {
      field.hidden = false;
      field.focus();
      say('Say why, then click "Skip" again.');
      return;
    }
    askBeforeLeaving('Skip');
    await api('/hermes/skip', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ image: imageId(), reason: field.value.trim(), client_id: annotator() }),
    });
    state.unsent = false;
    field.value = '';
    field.hidden = true;
    await next();
  }

  async function open(id) {
    const series = id.split('~')[0];
    const query = new URLSearchParams({ SeriesInstanceUID: series, includefield: '0020000D,00201209' });
    const answer = await api(`/proxy/dicom/qido/series?${query}`);
    const found = answer.status === 204 ? [] : await answer.json();
    const study = found[0]?.['0020000D']?.Value?.[0];
    if (!study) {
      throw new Error('The PACS does not have the next image any more. Ask again.');
    }
    state.unsent = false; // `next` has asked
    const address = new URLSearchParams({ StudyInstanceUIDs: study, initialSeriesInstanceUID: series, hermesImage: id });
    const single = Number(found[0]['00201209']?.Value?.[0]) === 1;
    location.assign(`${single ? MODE_OF_SINGLE_IMAGES : MODE}?${address}`);
  }

  const BRUSHES = [['CircularBrush', 'Brush'], ['CircularEraser', 'Eraser'], ['SphereBrush', '3D brush'], ['WindowLevel', 'Window']];

  async function take(tool) {
    await ensureSegmentation();
    for (const group of window.cornerstoneTools.ToolGroupManager.getAllToolGroups()) {
      if (group.hasTool?.(tool) ?? group.toolOptions?.[tool]) {
        window.commandsManager.runCommand('setToolActive', { toolName: tool, toolGroupId: group.id });
      }
    }
    state.tool = tool;
    sizeBrushes();
  }

  function sizeBrushes() {
    const value = Number(part('size').querySelector('input').value);
    part('size').querySelector('output').textContent = `${value} mm`;
    window.commandsManager.runCommand('setBrushSize', { value, toolNames: [] });
  }

  async function choose(name) {
    const one = await ensureSegmentation();
    const found = segmentsOf(one).find((segment) => segment.label === name);
    if (found) {
      services().segmentationService.setActiveSegment(one.segmentationId, found.segmentIndex);
    }
    state.active = name;
  }

  /** Runs an action once at a time; its failure is shown with the reason. */
  function doing(action) {
    return async () => {
      if (state.busy) {
        return;
      }
      if (!annotator() && !askName()) {
        return;
      }
      state.busy = true;
      render();
      try {
        await action();
      } catch (error) {
        say(error.message, 'error');
      } finally {
        state.busy = false;
        state.leaving = state.leaving && (action === next || action === skip || action === load);
        render();
      }
    };
  }

  // -------------------------------------------------------------------------------------------------- panel

  const panel = document.createElement('section');
  panel.className = 'hermes';
  panel.setAttribute('aria-label', 'Hermes');
  panel.dataset.state = 'connecting';
  panel.innerHTML = `
    <header><b>Hermes</b><span class="hermes-progress"></span></header>
    <form class="hermes-name"><input type="text" maxlength="80" placeholder="Your name" aria-label="Your name"></form>
    <div class="hermes-row"><button class="hermes-next" title="Open the image that is best labelled now">Next image</button>
      <button class="hermes-skip" title="Give this image back, with the reason, and open the next one">Skip</button></div>
    <input type="text" class="hermes-reason" maxlength="200" placeholder="Why is this image skipped?" aria-label="Reason" hidden>
    <div class="hermes-image">
      <div class="hermes-about"></div>
      <button class="hermes-load" title="Draw the label that this image has, in place of what is drawn" hidden>Load label</button>
      <ul aria-label="Structures"></ul>
      <div class="hermes-row"><button class="hermes-segment" title="Let the model draw the ticked structures; all, if none is ticked">Segment</button>
        <button class="hermes-main hermes-submit" title="Send what is drawn as the label of this image">Submit label</button></div>
      <div class="hermes-row hermes-tools"></div>
      <label class="hermes-size" title="Radius of the brushes in mm">size <input type="range" min="1" max="50" value="10"><output>10 mm</output></label>
    </div>
    <div class="hermes-model"></div>
    <div role="status"></div>`;
  const part = (name) => panel.querySelector(`.hermes-${name}`);
  const list = panel.querySelector('ul');
  const status = panel.querySelector('[role="status"]');

  for (const [tool, title] of BRUSHES) {
    const button = document.createElement('button');
    button.textContent = title;
    button.dataset.tool = tool;
    button.addEventListener('click', doing(() => take(tool)));
    part('tools').append(button);
  }
  part('next').addEventListener('click', doing(next));
  part('size').querySelector('input').addEventListener('input', sizeBrushes);
  part('skip').addEventListener('click', doing(skip));
  part('segment').addEventListener('click', doing(segment));
  part('submit').addEventListener('click', doing(submit));
  part('load').addEventListener('click', doing(load));
  part('name').addEventListener('submit', (event) => {
    event.preventDefault();
    const name = part('name').querySelector('input').value.trim();
    if (name) {
      rememberAnnotator(name);
      say(`Labels are noted as drawn by ${name}.`);
      render();
      if (state.about) {
        doing(opened)(); // a label of one's own, or a wish to look again, is known only now
      }
    }
  });
  // Keys typed here are not the viewer's shortcuts.
  panel.addEventListener('keydown', (event) => event.stopPropagation());

  function askName() {
    const field = part('name').querySelector('input');
    if (field.value.trim()) {
      rememberAnnotator(field.value.trim());
      return true;
    }
    part('name').hidden = false;
    field.focus();
    say('Who labels? Type your name once, then click again.', 'error');
    return false;
  }

  function say(text, kind = '') {
    status.textContent = text;
    status.dataset.kind = kind;
  }

  function row({ name, colour }) {
    const item = document.createElement('li');
    item.dataset.name = name;
    item.innerHTML = '<input type="checkbox"><i></i><button></button><span></span><label><input type="checkbox" class="hermes-absent">absent</label>';
    const [chosen, absent] = item.querySelectorAll('input');
    item.querySelector('i').style.background = `rgb(${colour.join(',')})`;
    const button = item.querySelector('button');
    button.textContent = name;
    button.title = `Draw ${name} from now on`;
    button.addEventListener('click', doing(() => choose(name)));
    chosen.setAttribute('aria-label', `segment ${name}`);
    chosen.addEventListener('change', () => { state.chosen[chosen.checked ? 'add' : 'delete'](name); render(); });
    absent.parentElement.title = `I have looked: there is no ${name} in this image`;
    absent.addEventListener('change', () => { state.absent[absent.checked ? 'add' : 'delete'](name); });
    return item;
  }

  function render() {
    const { campaign } = state;
    if (!campaign) {
      return;
    }
    const known = campaign.structures.map(({ name }) => name).join('\n');
    if (list.dataset.known !== known) {
      list.dataset.known = known;
      list.replaceChildren(...campaign.structures.map(row));
    }
    const inViewer = Boolean(displaySet());
    part('image').hidden = !inViewer;
    part('skip').hidden = !imageId();
    part('name').hidden = Boolean(annotator());
    part('progress').textContent = `${campaign.images.completed} of ${campaign.images.total} labelled`;
    const { phase, step, steps } = campaign.training;
    const training = phase === 'training' && steps ? `training ${step}/${steps}` : phase ?? 'no training yet';
    part('model').textContent = `Model ${campaign.serving_version ?? '-'} · ${training}`;
    part('segment').textContent = state.chosen.size ? `Segment ${state.chosen.size}` : 'Segment all';
    panel.querySelectorAll('button').forEach((button) => { button.disabled = state.busy; });
    panel.querySelectorAll('[data-tool]').forEach((button) => button.setAttribute('aria-pressed', String(button.dataset.tool === state.tool)));
    list.querySelectorAll('li').forEach((item) => item.classList.toggle('hermes-active', item.dataset.name === state.active));
    showAbout();
    showVolumes();
  }

  const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  const day = (seconds) => new Date(1000 * seconds).toLocaleDateString();

  /** The lines about the image on screen, each [text, kind]. */
  function linesAbout({ reserved, revisits, label, usable }) {
    const lines = [];
    const me = annotator();
    const others = reserved.filter((one) => one.annotator !== me).map((one) => one.annotator);
    const mine = reserved.find((one) => one.annotator === me);
    if (mine) {
      lines.push([`Reserved for you until ${clock(mine.until)}.`, '']);
    }
    if (others.length) {
      lines.push([`Reserved for ${others.join(', ')}.`, mine ? '' : 'again']);
    } else if (!mine) {
      lines.push(['Reserved for nobody.', '']);
    }
    if (!usable) {
      lines.push(['Left out of the campaign: it cannot be used.', 'again']);
    }
    for (const wish of revisits) {
      const who = wish.yours || !wish.annotator ? '' : `${wish.annotator} is asked: `;
      const why = wish.rejected ? `label rejected by ${wish.asked_by}` : `${wish.asked_by} asks to look again`;
      lines.push([`${who}${why}${wish.reason ? `: ${wish.reason}` : '.'}`, 'again']);
    }
    if (!label) {
      lines.push(['No label yet.', '']);
    } else if (label.source === 'original') {
      lines.push([`Drawn ahead by ${label.model_version ?? 'the model'}.`, '']);
    } else {
      const said = label.comment && !revisits.some((wish) => wish.reason === label.comment) ? ` (${label.comment})` : '';
      lines.push([`Label ${label.version} by ${label.own ? 'you' : label.annotator}, ${day(label.at)}: ${label.state}${said}.`, '']);
    }
    return lines;
  }

  function showAbout() {
    const lines = state.about ? linesAbout(state.about) : [];
    part('about').replaceChildren(...lines.map(([text, kind]) => {
      const line = document.createElement('p');
      line.textContent = text;
      line.dataset.kind = kind;
      return line;
    }));
    part('load').hidden = !state.about?.label;
  }

  function showVolumes() {
    let counts = null;
    let indices = new Map();
    try {
      const one = segmentation();
      if (one) {
        counts = voxelsPerSegment(slices(one).slices);
        indices = new Map(segmentsOf(one).map((each) => [each.label, each.segmentIndex]));
      }
    } catch (error) { /* nothing is drawn yet */ }
    list.querySelectorAll('li').forEach((item) => {
      const count = counts?.[indices.get(item.dataset.name)] ?? 0;
      item.querySelector('span').textContent = count ? count.toLocaleString('en') : '';
      item.querySelector('span').title = 'voxels';
    });
  }

  /** Keeps the panel in its place: on top of MONAI Label's, or floating where that is not shown. */
  function settle() {
    const home = document.querySelector('.monaiLabelPanel');
    if (home && panel.parentElement !== home) {
      panel.classList.remove('hermes-floating');
      home.prepend(panel);
    } else if (!home && panel.parentElement !== document.body) {
      panel.classList.add('hermes-floating');
      document.body.append(panel);
    }
  }

  // ------------------------------------------------------------------------------------------------- begin

  async function until(condition, tries = 150) {
    for (let left = tries; left > 0; left -= 1) {
      const found = condition();
      if (found) {
        return found;
      }
      await new Promise((wake) => { setTimeout(wake, WAIT_MS); });
    }
    throw new Error('The viewer did not get ready in time. Reload the page.');
  }

  /** Connects MONAI Label's own panel, after the segmentation that it is to draw into exists. */
  async function connectStockPanel() {
    const button = document.querySelector('.monaiLabelPanel .settingsTable .actionButton');
    if (!button || button.dataset.hermes) {
      return;
    }
    button.dataset.hermes = 'connected';
    document.getElementById('monailabelServerURL').value = `${location.origin}/`;
    button.click();
    setTimeout(paint, 2000); // it colours the segments by its own table a second after it has connected
  }

  const EXPORTS = new Set(['storeSegmentation', 'generateSegmentation', 'downloadSegmentation', 'downloadRTSS']);

  /** Repairs two of the viewer's commands.
   *
   * Its export to DICOM SEG sorts the images by falling position but not the labelmap's slices, so that a segmentation
   * of a series that is stored the other way round is written upside down; slices in that order come out right.
   * MONAI Label's panel would replace the campaign's segmentation by one with numbers and colours of its own.
   */
  function mendCommands() {
    const manager = window.commandsManager;
    if (!manager || manager.mendedByHermes) {
      return;
    }
    manager.mendedByHermes = true;
    const run = manager.runCommand.bind(manager);
    manager.runCommand = (name, options = {}, context = undefined) => {
      const id = options.segmentations?.[0]?.segmentationId;
      if (name === 'loadSegmentationsForViewport' && id === SEGMENTATION && services().segmentationService.getSegmentation(id)) {
        return Promise.resolve(id);
      }
      return EXPORTS.has(name) ? fallingOrder(options.segmentationId, () => run(name, options, context)) : run(name, options, context);
    };
  }

  /** Runs `action` while the slices of the segmentation stand in the order of falling position. */
  function fallingOrder(id, action) {
    const labelmap = window.cornerstoneTools.segmentation.state.getSegmentation(id)?.representationData?.Labelmap;
    if (!labelmap?.imageIds) {
      return action();
    }
    const usual = labelmap.imageIds;
    const height = (imageId) => {
      const plane = window.cornerstone.metaData.get('imagePlaneModule', window.cornerstone.cache.getImage(imageId).referencedImageId);
      return dot([...plane.imagePositionPatient], cross([...plane.rowCosines], [...plane.columnCosines]));
    };
    labelmap.imageIds = [...usual].sort((a, b) => height(b) - height(a));
    const restore = () => { labelmap.imageIds = usual; };
    let result;
    try {
      result = action();
    } catch (error) {
      restore();
      throw error;
    }
    if (result?.then) {
      return result.finally(restore);
    }
    restore();
    return result;
  }

  let preparing = false;

  async function watch() {
    settle();
    mendCommands();
    const series = displaySet()?.SeriesInstanceUID;
    if (series || !imageAsked() || !state.campaign) {
      state.noViewSince = null;
    } else if (!state.noViewSince) {
      state.noViewSince = Date.now();
    } else if (Date.now() - state.noViewSince > NO_VIEW_MS) {
      state.noViewSince = Infinity; // said once
      say('The viewer shows no volume of this series. Skip gives it back; it can be labelled in 3D Slicer.', 'error');
    }
    if (!state.campaign || !series || preparing || !viewportReady()) {
      return;
    }
    if (series !== state.series) {
      preparing = true;
      try {
        state.series = series;
        state.absent.clear();
        for (const box of panel.querySelectorAll('.hermes-absent')) {
          box.checked = false; // it was said of the image before
        }
        state.modelVersion = null;
        state.unsent = false;
        state.about = null;
        state.loaded = '';
        state.busy = true;
        panel.dataset.state = 'opening';
        render();
        say(`Opening ${imageTitle()} ...`);
        await ensureSegmentation();
        listen();
        await connectStockPanel();
        await opened();
      } catch (error) {
        say(error.message, 'error');
      } finally {
        preparing = false;
        state.busy = false;
        panel.dataset.state = 'ready';
        render();
      }
    }
  }

  function imageTitle() {
    const { SeriesDescription: title, Modality: modality, instances } = displaySet();
    return [instances?.[0]?.PatientID, modality, title].filter(Boolean).join(' · ') || imageId();
  }

  /** Says which image this is and why it was offered, and draws the label that is to be gone on from. */
  async function opened() {
    await lookAtImage();
    const offer = JSON.parse(sessionStorage.getItem(OFFER_KEY) ?? 'null');
    const missing = state.about.missing.length ? ` Still wanted: ${state.about.missing.join(', ')}.` : '';
    const why = offer?.id === imageId() ? `offered: ${offer.reason}` : 'opened from the list';
    if (comesByItself(state.about) && !isDrawn()) {
      state.loaded = await loadLabel();
    }
    say(`${imageTitle()}: ${why}.${missing} ${state.loaded}`);
  }

  function viewportReady() {
    return Boolean(window.commandsManager && window.cornerstone?.getRenderingEngines?.()[0]?.getViewport(viewportId())?.getImageIds?.().length);
  }

  let listening = false;

  function listen() {
    if (listening) {
      return;
    }
    listening = true;
    const { Events } = window.cornerstoneTools.Enums;
    const events = window.cornerstone.eventTarget;
    events.addEventListener(Events.SEGMENTATION_DATA_MODIFIED, () => {
      if (!state.drawing) {
        state.unsent = true;
      }
      clearTimeout(listen.later);
      listen.later = setTimeout(showVolumes, WAIT_MS);
    });
    events.addEventListener(Events.SEGMENTATION_REPRESENTATION_ADDED ?? Events.SEGMENTATION_REPRESENTATION_MODIFIED, () => setTimeout(paint, 0));
  }

  const METADATA = /\/proxy\/dicom\/.*\/metadata$/;

  /** Listens to the viewer's calls to the PACS.
   *
   * Says what became of a segmentation that the viewer's own export has stored through the proxy. Says to the proxy
   * which image is wanted of a series: of several volumes in one series the viewer would make one stack.
   */
  function hearCalls() {
    const { open: begin, send } = XMLHttpRequest.prototype;
    XMLHttpRequest.prototype.open = function hear(method, url, ...more) {
      this.hermesUrl = String(url);
      return begin.call(this, method, url, ...more);
    };
    XMLHttpRequest.prototype.send = function hear(...body) {
      if (METADATA.test(this.hermesUrl.split('?')[0]) && location.pathname.startsWith(MODE)) {
        this.setRequestHeader('hermes-image', imageAsked() ?? '');
      }
      this.addEventListener('loadend', () => {
        const said = this.responseURL.includes('/proxy/dicom/') && this.getResponseHeader('hermes-label');
        if (!said) {
          return;
        }
        const [label] = JSON.parse(said);
        if (label.image) {
          state.unsent = false;
          const covered = label.covered.length ? ` A voxel of a label belongs to one structure. ${label.covered.join('; ')}.` : '';
          say(`The stored segmentation is the submitted label of this image.${covered}`, covered ? 'error' : 'good');
        } else {
          say(`The segmentation is stored in the PACS, but is no label of the campaign: ${label.reason}`, 'error');
        }
        refresh().catch(() => {});
      });
      return send.apply(this, body);
    };
  }

  hearCalls();
  if (annotator()) {
    rememberAnnotator(annotator()); // the cookie may have been cleared
  }
  document.addEventListener('DOMContentLoaded', () => {
    refresh().catch((error) => say(error.message, 'error'));
    setInterval(watch, WAIT_MS);
    setInterval(() => {
      if (!document.hidden && !state.busy) {
        refresh().catch((error) => say(error.message, 'error'));
      }
    }, REFRESH_MS);
  });
  window.addEventListener('beforeunload', (event) => {
    if (isUnsent()) {
      event.preventDefault();
    }
  });

  const staysHere = () => isUnsent() && !window.confirm('What is drawn is not submitted. Leave it?');

  // The viewer's own way back to the worklist changes no page, so nothing else would ask.
  document.addEventListener('click', (event) => {
    const back = event.target.closest?.('[data-cy="return-to-work-list"]');
    if (back && staysHere()) {
      event.preventDefault();
      event.stopPropagation();
    }
  }, true);

  // Nor does the browser's, from an image to the worklist that it was opened from. This listener is the first one.
  let comingBack = false;
  window.addEventListener('popstate', (event) => {
    if (comingBack || staysHere()) {
      event.stopImmediatePropagation(); // the viewer does not learn that it was left
      if (!comingBack) {
        window.history.forward();
      }
      comingBack = !comingBack;
    }
  });

  // For scripts and tests: the labelmap of the image on screen as the server would get it.
  window.hermes = { state, slices: () => slices(segmentation()), segmentation, readNifti, writeNifti };
})();
