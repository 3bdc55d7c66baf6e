// What the page uses of uPlot 1.6.
export type Values = (number | null)[];
export type Data = [number[], ...Values[]];
type Colour = () => string;
interface Scale { range: (plot: uPlot, min: number, max: number) => [number, number] }
interface Axis {
    stroke: Colour;
    grid: { stroke: Colour; width: number };
    values: (plot: uPlot, splits: number[], axis: number, space: number, step: number) => string[];
    [more: string]: unknown;
}
export interface Options {
    width: number;
    height: number;
    padding: number[];
    legend: { show: boolean };
    cursor: Record<string, unknown>;
    scales: Record<string, Scale>;
    axes: Axis[];
    series: { label?: string; [more: string]: unknown }[];
    hooks: Record<string, ((plot: uPlot) => void)[]>;
}
export default class uPlot {
    constructor(options: Options, data: Data, parent: HTMLElement);
    readonly cursor: { idx?: number | null };
    readonly data: Data;
    readonly ctx: CanvasRenderingContext2D;
    readonly bbox: { left: number; top: number; width: number; height: number };
    readonly over: HTMLElement;
    valToPos(value: number, scale: string, canvas?: boolean): number;
    setData(data: Data): void;
    setSize(size: { width: number; height: number }): void;
    redraw(): void;
    destroy(): void;
}
